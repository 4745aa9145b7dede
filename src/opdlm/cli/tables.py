"""Results as tables, in the form that fits the output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from opdlm.records.evaluation import Comparison, Evaluation, Score, retained
from opdlm.records.tuning import Tuning, difference_interval

if TYPE_CHECKING:
    from opdlm.evals.likelihood import Likelihood

_TAGS_OF_THEIR_OWN = {"seen", "unseen"}


@dataclass(frozen=True)
class ResultTable:
    """A line for each of `rows` (its name and its cells), a column for each of `headings`; title lines above.

    A terminal that is too narrow for it gets a column for each row instead, in as many parts as it takes. Where there
    is no terminal it is a table of plain text, whole at any width.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Text(self.title)
        whole = self._whole(box.HEAVY_HEAD if console.is_terminal else box.MARKDOWN)
        if _fits(whole, console, options):
            yield whole
            return
        first = 0
        while first < len(self.rows):
            after = first + 1
            while after < len(self.rows) and _fits(self._turned(first, after + 1), console, options):
                after += 1
            yield self._turned(first, after)
            first = after

    def _whole(self, frame: box.Box) -> Table:
        made = Table(box=frame)
        made.add_column("", no_wrap=True)
        for heading in self.headings:
            made.add_column(heading, justify="right", no_wrap=True)
        for name, cells in self.rows:
            made.add_row(name, *cells)
        return made

    def _turned(self, first: int, after: int) -> Table:
        """A column for each of these rows."""
        shown = self.rows[first:after]
        made = Table(box=box.SIMPLE, pad_edge=False)
        made.add_column("", no_wrap=True)
        for name, _ in shown:
            made.add_column(name.replace(", ", ",\n"), justify="right", vertical="bottom")
        for index, heading in enumerate(self.headings):
            made.add_row(heading, *(cells[index] for _, cells in shown))
        return made


def _fits(table: Table, console: Console, options: ConsoleOptions) -> bool:
    unlimited = options.update(width=10_000)
    return Measurement.get(console, unlimited, table).maximum <= options.max_width


def comparison_table(comparison: Comparison, title: str) -> ResultTable:
    """Accuracy by family, accuracy retained and speed: a row for the teacher and one for each decoding."""
    shown = [row for row in comparison.teacher.rows if row.tag is None or row.tag in _TAGS_OF_THEIR_OWN]
    headings = (row.label.replace("/", " ") for row in shown)
    rows = [("teacher", (*_cells(comparison.teacher, shown), "", "", *_speeds(comparison.teacher)))]
    for student in comparison.students:
        share = retained(student, comparison.teacher)["overall"]
        kept = "-" if share is None else f"{share:.1%}"
        same = "-" if student.same_text is None else f"{student.same_text} of {student.total.n}"
        rows.append((f"student, {student.decoding}", (*_cells(student, shown), kept, same, *_speeds(student))))
    names = f"teacher {comparison.against}, student {comparison.model}\n" if comparison.model else ""
    return ResultTable(
        names + title, (*headings, "mean", "retained", "same text", "tokens/forward", "tokens/s"), tuple(rows)
    )


def side_by_side(named: Sequence[tuple[str, Comparison, Comparison]], title: str) -> ResultTable:
    """Conversions of one original, each by name, asked in batches and one by one; the original after the first."""
    rows = [
        (name, *both) for name, batched, single in named for both in zip(batched.students, single.students, strict=True)
    ]
    _, batched, single = named[0]
    rows.insert(len(batched.students), ("original", batched.teacher, single.teacher))
    sizes = [comparison.batch_size for comparison in (single, batched)]
    per_forward = f"tokens/forward, batch {sizes[0]}"  # where many rows share a forward `verified:auto` drafts little
    headings = ("right", "right, unseen facts", "same text", per_forward, *(f"tokens/s, batch {n}" for n in sizes))
    return ResultTable(title, headings, tuple(_side(*row) for row in rows))


def _side(name: str, many: Evaluation, alone: Evaluation) -> tuple[str, tuple[str, ...]]:
    """One line of `side_by_side`."""
    unseen = [f"{score.accuracy:.1%}" for score in many.rows if score.tag == "unseen"]
    same = "" if many.same_text is None else f"{many.same_text} of {many.total.n}"
    speeds = [f"{one.tokens_per_second:,.0f}" for one in (alone, many)]
    label = f"{name}, {many.decoding}" if many.decoding else name
    return label, (f"{many.accuracy:.1%}", *(unseen or ["-"]), same, f"{alone.tokens_per_forward:.2f}", *speeds)


def acceptance_lines(comparison: Comparison) -> list[str]:
    """Of each decoding with drafts, how many held, by their place in the window."""
    return [
        f"{student.decoding}: drafts accepted, place by place in the window, where those before were: "
        + ", ".join(f"{share:.0%}" for share in student.acceptance)
        for student in comparison.students
        if student.acceptance
    ]


def _cells(evaluation: Evaluation, shown: Sequence[Score]) -> list[str]:
    rows = (evaluation.row(row.family, row.tag) for row in shown)
    return [*(f"{row.accuracy:.1%}" for row in rows), f"{evaluation.accuracy:.1%}"]


def _speeds(evaluation: Evaluation) -> tuple[str, str]:
    return f"{evaluation.tokens_per_forward:.2f}", f"{evaluation.tokens_per_second:,.0f}"


def suite_table(comparison: Comparison) -> ResultTable:
    """Accuracy by suite with its 95 % interval, and speed: a row for the teacher and one for each decoding."""
    shown = comparison.teacher.families
    rows = []
    for one in (comparison.teacher, *comparison.students):
        cells = [f"{row.accuracy:.1%} [{row.interval[0]:.0%}, {row.interval[1]:.0%}]" for row in one.families]
        same = "" if one.same_text is None else f"{one.same_text:,} of {one.total.n:,}"
        rows.append((f"student, {one.decoding}" if one.decoding else "teacher", (*cells, same, *_speeds(one))))
    title = f"teacher {comparison.against}, student {comparison.model}\naccuracy [95 % interval]"
    headings = (*(f"{row.family} ({row.n:,})" for row in shown), "same text", "tokens/forward", "tokens/s")
    return ResultTable(title, headings, tuple(rows))


def tuning_table(tuning: Tuning, title: str) -> ResultTable:
    """A row for each decoding: what is chosen first, then the other allowed ones, then those that lose too much."""
    reference, rows = tuning.trial(tuning.reference), []
    for one in tuning.in_order():
        low, high = one.interval
        ends = sorted(-end for end in difference_interval(one, reference))
        drop = "" if one is reference else f"{tuning.drop(one):+.1%} [{ends[0]:+.1%}, {ends[1]:+.1%}]"
        bits = () if one.bits_per_token is None else (f"{one.bits_per_token:.3f}",)
        speeds = f"{one.tokens_per_forward:.2f}", f"{one.tokens_per_second:,.0f}"
        name = one.decoding if tuning.allowed(one) else f"{one.decoding} (loses more)"
        rows.append((name, (f"{one.mean_quality:.1%} [{low:.1%}, {high:.1%}]", drop, *bits, *speeds)))
    bits = () if reference.bits_per_token is None else ("bits per token",)
    headings = (tuning.measure, f"drop from {tuning.reference}", *bits, "tokens/forward", "tokens/s")
    return ResultTable(f"{title}, batches of {tuning.batch_size}\n95 % intervals in brackets", headings, tuple(rows))


def likelihood_table(rows: "Sequence[Likelihood]", title: str) -> ResultTable:
    """A row for each writer and decoding."""
    made = []
    for row in rows:
        name = "original" if row.writer == "original" else f"{row.writer}, {row.decoding}"
        same = "-" if row.same_text is None else f"{row.same_text:,}"
        cells = f"{row.bits_per_byte:.3f}", f"{row.bits_per_token:.3f}", f"{row.agreement:.1%}", same
        made.append((name, (*cells, f"{row.tokens_per_forward:.2f}", f"{row.tokens:,}")))
    headings = ("bits per byte", "bits per token", "agreement", "same text", "tokens/forward", "tokens")
    return ResultTable(title, headings, tuple(made))
