"""An interruption waits until what belongs together is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def held() -> Iterator[None]:
    """Signals whose handlers are Python's reach these when the body is done, not in the middle of it.

    Python's own handler of Ctrl-C raises wherever the program is: between two parameters of an update, say.
    """
    noted = Noted()
    try:
        with noted.kept():
            yield
    finally:
        noted.deliver()


class Noted:
    """Signals that are noted, not delivered, while `kept` lasts."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._handlers: dict[int, Callable[..., Any]] = {}

    @property
    def came(self) -> bool:
        """Whether there was one that is not delivered yet."""
        return bool(self._came)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Note signals whose handlers are Python's. In a thread that no signal interrupts: nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
        self._note()
        try:
            yield
        finally:
            self._let_go()
            self._handlers = {}

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Inside `kept`: signals reach their handlers at once, those that came before first."""
        try:
            self._let_go()
            self.deliver()
            yield
        finally:
            self._note()

    def deliver(self) -> None:
        """The first of those that came, to its handler; the others are forgotten."""
        came, self._came = self._came, []
        for number in came[:1]:
            signal.raise_signal(number)

    def _note(self) -> None:
        for number in self._handlers:
            signal.signal(number, lambda number, frame: self._came.append(number))

    def _let_go(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
