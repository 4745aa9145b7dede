"""Servers in processes of their own, on the loopback address."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import psutil

START_S = 600


@contextmanager
def opdlm(batch_size: int, queue_limit: int) -> Iterator[tuple[str, psutil.Process]]:
    """`opdlm serve` of the package's own models: the address of its API, and its process."""
    limits = ["--batch-size", str(batch_size), "--queue-limit", str(queue_limit)]
    with _running([sys.executable, "-m", "opdlm", "serve", "--port", "0", *limits], subprocess.PIPE) as process:
        assert process.stdout is not None
        yield next(line for line in process.stdout if " at http" in line).split()[4], psutil.Process(process.pid)


@contextmanager
def transformers(model: Path, continuous: bool) -> Iterator[tuple[str, psutil.Process]]:
    """`transformers serve` of one model, likewise; `wait_for` it before it is used."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(model), "--device", "cpu"]
    options = ["--host", "127.0.0.1", "--port", str(port), *(["--continuous-batching"] if continuous else [])]
    with _running([*command, *options], subprocess.DEVNULL) as process:
        yield f"http://127.0.0.1:{port}/v1", psutil.Process(process.pid)


@contextmanager
def _running(command: Sequence[str], output: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=output, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: psutil.Process) -> None:
    """Until the server of an API answers. RuntimeError if it does not."""
    health = url.removesuffix("/v1") + "/health"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if not process.is_running():
            raise RuntimeError("the server ended before it answered")
        try:
            urllib.request.urlopen(health, timeout=5).close()
        except (URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"the server did not answer within {START_S} s")
