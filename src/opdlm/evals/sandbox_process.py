"""One child process that is not trusted: started, asked a line at a time, never waited for beyond its time, killed."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any, Literal, Self

from opdlm.evals.sandbox_confinement import Confinement, visible
from opdlm.evals.sandboxed.messages import MAX_BYTES

Ending = Literal["timeout", "killed", "junk"]


class ChildEndedError(Exception):
    """The child gives no answer: its time is up, it ended, or what it writes is none. `kind` says which."""

    def __init__(self, kind: Ending) -> None:
        super().__init__(kind)
        self.kind: Ending = kind


class Child:
    """A context: the process and all that it started are gone when it ends.

    Args:
        confinement: how it is kept apart.
        request: what it does (`sandboxed.child.main`).
        deadline: the moment of `time.monotonic()` at which its time is up, in seconds.
    """

    def __init__(self, confinement: Confinement, request: dict[str, Any], deadline: float) -> None:
        self._kind, self._request, self._deadline = confinement.kind, request, deadline
        self._command = confinement.command()
        self._read = b""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="opdlm-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env={},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        about = {"confinement": self._kind, "visible": visible(), "root": self._folder.name}
        self._to_write = json.dumps({**about, **self._request}).encode() + b"\n"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        process = self._process
        if self._kind == "limits":  # its keeper ends what made a session of its own
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=6)
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still the child's
        process.communicate()
        self._folder.cleanup()

    def write(self, message: dict[str, Any]) -> None:
        """Says one thing to the child, at the next `line`."""
        self._to_write += json.dumps(message).encode() + b"\n"

    def line(self) -> dict[str, Any]:
        """The next thing that the child says, as plain JSON values that mean nothing yet.

        Raises:
            ChildEndedError: there is none in time, or it is no JSON object of at most MAX_BYTES.
        """
        try:
            while self._to_write:
                self._wait(self._in, selectors.EVENT_WRITE)
                self._to_write = self._to_write[os.write(self._in, self._to_write) :]
        except BrokenPipeError as error:
            raise ChildEndedError("killed") from error
        while b"\n" not in self._read:
            if len(self._read) > MAX_BYTES:
                raise ChildEndedError("junk")
            self._wait(self._out, selectors.EVENT_READ)
            chunk = os.read(self._out, MAX_BYTES)
            if not chunk:
                raise ChildEndedError("killed")
            self._read += chunk
        text, _, self._read = self._read.partition(b"\n")
        try:
            said = json.loads(text)
        except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
            raise ChildEndedError("junk") from error
        if not isinstance(said, dict):
            raise ChildEndedError("junk")
        return said

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Says one thing and hears one."""
        self.write(message)
        return self.line()

    def _wait(self, descriptor: int, event: int) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            if not selector.select(max(0.0, self._deadline - time.monotonic())):
                raise ChildEndedError("timeout")


def program_request(source: str, *, prelude: str, timeout_s: float, memory_mib: int) -> dict[str, Any]:
    """A request to run `source` after `prelude`. The expected values have no place in it."""
    limits = {"cpu_s": int(timeout_s) + 2, "memory_mib": memory_mib}  # where both can stop it, the wall clock does
    return {**limits, "role": "program", "prelude": prelude, "source": source}
