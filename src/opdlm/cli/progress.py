"""Who has answered how much: one line that changes on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

OnProgress = Callable[[str, int, int], None]


@contextmanager
def answering(console: Console, what: str = "answers", every_s: float = 5.0) -> Iterator[OnProgress]:
    """Gives the function to call with (who writes, how many are written, how many there will be); `what`: of these.

    Where there is no terminal, the first and the last call of each model print a line, and others every `every_s`.
    """
    if not console.is_terminal:
        yield _lines(console, what, every_s)
        return
    with console.status("loading the models") as status:
        yield lambda name, done, total: status.update(_text(name, done, total, what))


def _lines(console: Console, what: str, every_s: float) -> OnProgress:
    printed_at = float("-inf")

    def show(name: str, done: int, total: int) -> None:
        nonlocal printed_at
        if done in (0, total) or time.monotonic() - printed_at >= every_s:
            printed_at = time.monotonic()
            console.print(_text(name, done, total, what), markup=False, soft_wrap=True)

    return show


def _text(name: str, done: int, total: int, what: str) -> str:
    return f"{name}: {done:,} of {total:,} {what}"
