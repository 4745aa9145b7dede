"""How many drafts a forward should make and check: measured while text is written.

What is best depends on the batch: a forward for one row costs little more with fifty tokens than with one, a forward
for many rows costs in proportion. The text does not depend on it, so the choice is free to follow the clock.

A forward over Q tokens is taken to need what recent forwards over as many needed; where there were none, a + b Q
seconds, fitted to all recent ones. The line alone misleads on a CPU, where one token may cost far less than two. A
draft at place j, given those before it held, is taken to be accepted with its recent frequency.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean
from threading import RLock

_MEMORY = 0.98  # share of what was known that stays after each forward
_PROBING = 0.03  # share of the time for forwards with more drafts than is best: to learn from
_OUTLIER = 4.0  # times the expected seconds: a compilation, or another program
_RECENT = 0.1  # weight down to which forwards over as many tokens are remembered
_FIRST = 0.8  # acceptance of drafts that nobody has seen


@dataclass(frozen=True)
class WindowShape:
    """Windows of a forward. size: drafts of each, 0 for none. every: one behind each draft, else behind the last.
    width: query tokens of a window, where they are not as many as its drafts.
    """

    size: int
    every: bool
    width: int | None = None

    def tokens(self) -> int:
        """Query tokens of a row: the last known token, its drafts, and the windows."""
        width = self.size if self.width is None else self.width
        return 1 + self.size + width * (self.size + 1 if self.every and self.size else min(1, self.size))


class Turn:
    """A lock. A copy of its owner, pickled or not, has one of its own."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["Turn"], tuple[()]]:
        return Turn, ()


@dataclass
class Pace:
    """Attributes:
    window: most drafts of a forward. sizes: numbers of drafts to choose from, beside none and the most.
    width: of `WindowShape`. rooms: how many drafts find room, each number as often; none: all.
    offered, held: of each place in a window, recent drafts and those that held.
    """

    window: int
    sizes: Sequence[int] = (1, 2, 3, 5)
    width: int | None = None
    rooms: Sequence[int] = ()
    offered: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # of weights, tokens, seconds, tokens^2, products
    _alike: dict[int, tuple[float, float]] = field(default_factory=dict)  # query tokens -> weight, weight x seconds
    _forwards: int = 0
    _unprobed: float = 0.0  # seconds since the last forward that was there to learn from

    def __post_init__(self) -> None:
        self.offered, self.held = [1.0] * self.window, [_FIRST] * self.window

    def saw(self, tokens: int | None, seconds: float, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """One forward: its query tokens and seconds, and for each row its drafts and how many of them held.

        tokens: None where prompts were among them: a token of a long prompt costs less than one that is drafted.
        """
        if tokens is not None:
            self._timed(tokens, seconds)
        for place in range(self.window):
            reached = [held for count, held in zip(drafted, accepted, strict=True) if count > place and held >= place]
            self.offered[place] = _MEMORY * self.offered[place] + len(reached)
            self.held[place] = _MEMORY * self.held[place] + sum(held > place for held in reached)

    def _timed(self, tokens: int, seconds: float) -> None:
        self._forwards += 1
        expected = self._seconds(tokens)
        if self._spread() and _OUTLIER * seconds < expected:
            self._sums, self._alike = [0.0] * 5, {}  # what came before were compilations
        elif self._forwards > 8 and expected > 0:
            seconds = min(seconds, _OUTLIER * expected)
        self._unprobed += seconds
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = [_MEMORY * old + value for old, value in zip(self._sums, new, strict=True)]
        self._alike = {q: (_MEMORY * w, _MEMORY * s) for q, (w, s) in self._alike.items() if w > _RECENT}
        weight, summed = self._alike.get(tokens, (0.0, 0.0))
        self._alike[tokens] = weight + 1, summed + seconds

    def choose(self, rows: int, most: int) -> WindowShape:
        """The windows with the most tokens a second for `rows` rows, of at most `most` drafts."""
        probe, none = self._shape(min(most, self.window), False), self._shape(0, False)
        if not self._spread():  # a line takes forwards of different size
            return probe if 0 < self._sums[1] <= rows * self._sums[0] else none
        best = max(self._shapes(probe.size), key=lambda shape: self.rate(rows, shape))
        if best.size == probe.size or self._unprobed * _PROBING < self._seconds(rows * probe.tokens()):
            return best
        self._unprobed = 0.0
        return probe

    def rate(self, rows: int, shape: WindowShape) -> float:
        """Expected tokens a second."""
        return rows * self.tokens(shape) / max(1e-9, self._seconds(rows * shape.tokens()))

    def tokens(self, shape: WindowShape) -> float:
        """Expected tokens of a row in a forward: its own, and the drafts that hold."""
        return mean(self._found(min(shape.size, room), shape.every) for room in self.rooms or (shape.size,))

    def _found(self, size: int, every: bool) -> float:
        reach, found = 1.0, 1.0
        for place in range(size):
            reach *= self.held[place] / self.offered[place]
            found += reach
        # With one window, a refusal leaves the next forward without drafts: it writes one token.
        return found if every else (found + 1 - reach) / (2 - reach)

    def _shapes(self, most: int) -> Iterator[WindowShape]:
        yield self._shape(0, False)
        for size in {size for size in (*self.sizes, most) if size <= most}:
            yield self._shape(size, True)
            yield self._shape(size, False)

    def _shape(self, size: int, every: bool) -> WindowShape:
        return WindowShape(size, every, self.width)

    def _seconds(self, tokens: int) -> float:
        """Of a forward over so many query tokens."""
        if tokens in self._alike:
            weight, seconds = self._alike[tokens]
            return seconds / weight
        a, b = self._line()
        return a + b * tokens

    def _line(self) -> tuple[float, float]:
        """a and b, neither below 0."""
        weight, tokens, seconds, _, products = self._sums
        if not (spread := self._spread()):
            return (0.0 if weight == 0 else seconds / weight), 0.0
        b = max(0.0, (weight * products - tokens * seconds) / spread)
        return max(0.0, (seconds - b * tokens) / weight), b

    def _spread(self) -> float:
        """Of the query tokens of forwards, times the square of their weight; 0 where all had as many."""
        weight, tokens, _, squares, _ = self._sums
        spread = weight * squares - tokens * tokens
        return spread if spread > 1e-9 * max(1.0, squares) else 0.0
