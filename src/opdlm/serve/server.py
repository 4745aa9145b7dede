"""Runs the server: takes the port before anything heavy, loads the models, and stops in order."""

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from opdlm.checkpoints.load import ENTRY, is_checkpoint
from opdlm.checkpoints.source import load_config
from opdlm.config import ServeSettings
from opdlm.errors import UsageError
from opdlm.sampling.api import DiffusionLM, load, load_autoregressive
from opdlm.serve.app import make_app, make_loop
from opdlm.serve.loop import EngineLoop

_LAST_WORDS_S = 5
"""What clients have to read why their requests ended."""


def take_port(host: str, port: int) -> socket.socket:
    """A socket that listens: else another server could take the port too. Who connects waits for the models to load.

    UsageError where the port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen()
    except OSError as error:
        taken.close()
        raise UsageError(_no_port(host, port, error)) from error
    return taken


def _no_port(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use by another program; choose another with --port"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; choose another with --host"
    return f"the server cannot listen at {host} port {port} ({error.strerror}); choose others with --host and --port"


def names_of(models: Sequence[str | Path]) -> list[str]:
    """By which clients ask for each: a folder's own name, or the hub's. UsageError if two are the same."""
    names = [Path(model).resolve().name if Path(model).is_dir() else str(model) for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two models are called {twice!r}; rename one of the folders")
    return names


def load_served(model: str | Path, device: str, dtype: str, compile: bool) -> DiffusionLM:
    """A converted model, or an AR model as it is."""
    run = is_checkpoint(Path(model) / "model") or (Path(model) / "config.toml").is_file()
    if run or getattr(load_config(model), ENTRY, None) is not None:
        return load(model, device=device, dtype=dtype, compile=compile, pack=not compile)
    return load_autoregressive(model, device=device, dtype=dtype, pack=True)


def make_server(
    models: dict[str, DiffusionLM], settings: ServeSettings, taken: socket.socket, ready: Callable[[str], None]
) -> "Server":
    """What `run(sockets=[taken])` serves until a signal ends it: open requests have `stop_timeout_s` to finish.

    `ready` is told the address of the API once it listens. If the engine's thread ends by an error, the server stops.
    """

    def ended() -> None:
        server.broken = not server.should_exit
        server.should_exit = True

    loop = make_loop(models, settings)
    config = uvicorn.Config(
        make_app(models, settings, loop, ended),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(settings.stop_timeout_s) + _LAST_WORDS_S,
        lifespan="on",
    )
    server = Server(config, loop, settings.stop_timeout_s, lambda: ready(address(taken)))
    return server


def address(taken: socket.socket) -> str:
    """Of the API."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class Server(uvicorn.Server):
    """Says when it listens. broken: the engine has ended by an error of its own."""

    def __init__(
        self, config: uvicorn.Config, loop: EngineLoop, stop_timeout_s: float, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._loop, self._stop_timeout_s, self._ready, self.broken = loop, stop_timeout_s, ready, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Open requests fail when their time is over, so that clients hear of it: uvicorn would cut them."""
        cutting = asyncio.ensure_future(self._cut())
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    async def _cut(self) -> None:
        await asyncio.sleep(self._stop_timeout_s)
        await self._loop.stop()
