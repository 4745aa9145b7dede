"""How a run ends from outside: Ctrl-C, SIGTERM (a cluster), SIGHUP (a terminal that was closed)."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

from opdlm.parallel import environment

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_STOPPING = b"\nstopping: what is done goes into a checkpoint; Ctrl-C again ends at once without it\n"
_SHOW_CURSOR = b"\x1b[?25h"
_OUTPUTS = (1, 2)


class Ending:
    """While it is entered, the first of these signals raises KeyboardInterrupt, and a Ctrl-C after it ends the process.

    A signal that the caller ignores stays ignored: `nohup` works. SIGTERM or SIGHUP after the first are ignored, since
    launchers and shells often send them twice.
    """

    def __init__(self) -> None:
        self._first: int = signal.SIGINT
        self._came = False
        self._before: dict[int, object] = {}
        self._terminals = [output for output in _OUTPUTS if os.isatty(output)]

    @property
    def exit_code(self) -> int:
        """What the process should end with, by custom: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + self._first

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._came:
            if number == signal.SIGINT:
                self._tell(_SHOW_CURSOR, self._terminals)
                os._exit(128 + number)
            return
        self._came, self._first = True, number
        if _is_hangup(number):
            self._leave_terminal()
        if environment.speaks():
            self._tell(_STOPPING, [2])
        raise KeyboardInterrupt

    def _leave_terminal(self) -> None:
        """The terminal is gone, and writing to it would be an error: what comes now goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in self._terminals:
            os.dup2(nowhere, output)

    @staticmethod
    def _tell(text: bytes, outputs: list[int]) -> None:
        """Past Python's files, which may be in the middle of a write."""
        for output in outputs:
            with suppress(OSError):
                os.write(output, text)


def _is_hangup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None)
