"""Results as tables for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from opdlm.records.evaluation import Comparison, Evaluation, Score, retained

if TYPE_CHECKING:
    from opdlm.evals.likelihood import Likelihood

_TAGS_OF_THEIR_OWN = {"seen", "unseen"}


def comparison_table(comparison: Comparison, title: str) -> Table:
    """Accuracy by family, accuracy retained and speed: a row for the teacher and one for each decoding."""
    made = Table(title=title, title_justify="left")
    made.add_column("")
    shown = [row for row in comparison.teacher.rows if row.tag is None or row.tag in _TAGS_OF_THEIR_OWN]
    headings = (row.label.replace("/", " ") for row in shown)
    for heading in (*headings, "mean", "retained", "tokens/forward", "tokens/s"):
        made.add_column(heading, justify="right")
    made.add_row("teacher", *_cells(comparison.teacher, shown), "", *_speeds(comparison.teacher))
    for student in comparison.students:
        share = retained(student, comparison.teacher)["overall"]
        kept = "-" if share is None else f"{share:.1%}"
        made.add_row(f"student, {student.decoding}", *_cells(student, shown), kept, *_speeds(student))
    return made


def _cells(evaluation: Evaluation, shown: Sequence[Score]) -> list[str]:
    rows = (evaluation.row(row.family, row.tag) for row in shown)
    return [*(f"{row.accuracy:.1%}" for row in rows), f"{evaluation.accuracy:.1%}"]


def _speeds(evaluation: Evaluation) -> tuple[str, str]:
    return f"{evaluation.tokens_per_forward:.2f}", f"{evaluation.tokens_per_second:,.0f}"


def likelihood_table(rows: "Sequence[Likelihood]", title: str) -> Table:
    """A row for each writer and decoding."""
    made = Table(title=title, title_justify="left")
    made.add_column("written by")
    for column in ("decoding", "bits per byte", "tokens / forward", "tokens"):
        made.add_column(column, justify="right")
    for row in rows:
        decoding = "autoregressive" if row.writer == "original" else row.decoding
        numbers = (f"{row.bits_per_byte:.3f}", f"{row.tokens_per_forward:.2f}", f"{row.tokens:,}")
        made.add_row(row.writer, decoding, *numbers)
    return made
