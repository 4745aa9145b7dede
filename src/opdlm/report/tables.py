"""The tables of a report: what was done, teacher and student, where the time went."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opdlm.config import as_text
from opdlm.records.evaluation import Comparison, Evaluation, Score, retained
from opdlm.report.run_records import RunRecords
from opdlm.report.words import amount, duration, gib, interval, percent

_OF_THEIR_OWN = ("seen", "unseen")


@dataclass(frozen=True)
class Cell:
    """A value, and what stands small below it."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A column for each of `heads`, a line for each of `rows`: its name and a cell a column."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""
    words: bool = False  # rather than numbers


# --- what was done ------------------------------------------------------------------------------------------------


def facts(runs: Sequence[RunRecords]) -> Table:
    """What each run did and what it cost; a line that would be empty for all of them is left out."""
    lines = [(name, tuple(Cell(say(run)) for run in runs)) for name, say in _FACTS.items()]
    shown = tuple((name, cells) for name, cells in lines if any(cell.text for cell in cells))
    return Table("What was done", tuple(run.name for run in runs), shown, words=True)


def _model(run: RunRecords) -> str:
    return Path(run.settings.model).name if Path(run.settings.model).is_absolute() else run.settings.model


def _progress(run: RunRecords) -> str:
    done = f"{run.last.rollouts:,}" if run.finished else f"{run.last.rollout:,} of {run.last.rollouts:,}, not finished"
    return f"{done}, each of {run.settings.prompts_per_rollout:,} prompts"


def _weights(run: RunRecords) -> str:
    if run.lossless:
        return f"a gate (LoRA rank {run.settings.lora_rank}); the model's own stay unchanged"
    return "all" if run.settings.lora_rank is None else f"a LoRA adapter of rank {run.settings.lora_rank}"


def _block(run: RunRecords) -> str:
    return "" if run.lossless else f"{run.settings.block_size} tokens"


def _decoding(run: RunRecords) -> str:
    rollouts, usual = as_text(run.settings.rollout_decoding), as_text(run.settings.usual_decoding)
    return usual if rollouts == usual else f"{usual} (rollouts: {rollouts})"


def _agreement(run: RunRecords) -> str:
    if run.worth is None:
        return ""
    measured = {"before": run.worth.before, "after": run.worth.after}
    return ", ".join(f"{percent(one.agreement)} {when}" for when, one in measured.items() if one is not None)


def _changed(run: RunRecords) -> str:
    return "; ".join(
        f"after rollout {change.rollouts_begun}: {name} {before} -> {after}"
        for change in run.changes
        for name, (before, after) in change.changed.items()
    )


def _speed(run: RunRecords) -> str:
    speed = run.last.tokens_per_forward
    if not speed:
        return ""
    accepted = f" ({speed - 1:.2f} accepted drafts per forward)" if run.lossless and speed > 1 else ""
    return f"{speed:.2f} in the last rollout{accepted}"


_FACTS: dict[str, Callable[[RunRecords], str]] = {
    "AR model": _model,
    "method": lambda run: run.settings.method,
    "recipe": lambda run: Path(run.settings.recipe or "").name,
    "trained weights": _weights,
    "block": _block,
    "window": lambda run: f"{run.settings.window} drafts" if run.lossless else "",
    "decoding": _decoding,
    "rollouts": _progress,
    "updates": lambda run: f"{run.last.updates:,}",
    "peak learning rate": lambda run: f"{run.settings.optimiser.learning_rate:g}",
    "tokens trained on": lambda run: f"{run.last.total.tokens_trained:,} response tokens",
    "tokens rolled out": lambda run: f"{run.last.total.tokens_rolled_out:,}",
    "compute": lambda run: amount(run.last.total.flops, "FLOP"),
    "time": lambda run: duration(run.last.total.seconds),
    "peak memory": lambda run: gib(max(metrics.peak_memory_bytes for metrics in run.metrics)),
    "tokens per forward": _speed,
    "agreement with the teacher": _agreement,
    "changed on resuming": _changed,
}


# --- teacher and student ------------------------------------------------------------------------------------------


def comparison(run: RunRecords, found: Comparison) -> Table:
    """A line for each task and speed; a column for the teacher and for each decoding of the student."""
    everyone = (found.teacher, *found.students)
    lines = [
        *_scores(found, [row for row in found.teacher.rows if is_of_its_own(row)]),
        ("all problems", tuple(Cell(percent(one.total.accuracy), interval(one.total.interval)) for one in everyone)),
        ("mean of the tasks", tuple(Cell(percent(one.accuracy)) for one in everyone)),
        ("retained", (Cell(""), *(_retained(one, found.teacher) for one in found.students))),
    ]
    if any(one.same_text is not None for one in found.students):
        lines.append(("same text as the teacher", (Cell(""), *map(_same, found.students))))
    if any(one.acceptance for one in found.students):
        lines.append(("drafts accepted, by their place", (Cell(""), *map(_acceptance, found.students))))
    lines += [
        ("tokens per forward", tuple(Cell(f"{one.tokens_per_forward:.2f}") for one in everyone)),
        ("tokens per second", tuple(Cell(f"{one.tokens_per_second:,.0f}") for one in everyone)),
    ]
    batch = f" in batches of {found.batch_size}" if found.batch_size else ""
    note = 'Share of right answers, with the 95 % interval (Wilson). "retained" is the mean over the teacher\'s mean.'
    if any(row.tag in _OF_THEIR_OWN for row in found.teacher.rows):
        note += ' Facts tagged "seen" were asked for in conversion prompts, "unseen" ones never.'
    return Table(f"{run.name}: {found.teacher.total.n:,} problems{batch}", _heads(found), tuple(lines), note)


def groups(run: RunRecords, found: Comparison) -> Table | None:
    """A line for each further tag within a task; None where there is none."""
    rows = [row for row in found.teacher.rows if not is_of_its_own(row)]
    if not rows:
        return None
    return Table(f"{run.name}: groups within the tasks", _heads(found), tuple(_scores(found, rows)))


def is_of_its_own(row: Score) -> bool:
    """A whole task, or a tag that says something about forgetting."""
    return row.tag is None or row.tag in _OF_THEIR_OWN


def _heads(found: Comparison) -> tuple[str, ...]:
    return ("teacher", *(one.decoding or one.name for one in found.students))


def _scores(found: Comparison, rows: Sequence[Score]) -> list[tuple[str, tuple[Cell, ...]]]:
    everyone = (found.teacher, *found.students)
    return [
        (f"{row.label.replace('/', ', ')} ({row.n:,})", tuple(_score(one, row.family, row.tag) for one in everyone))
        for row in rows
    ]


def _score(one: Evaluation, family: str, tag: str | None) -> Cell:
    row = one.row(family, tag)
    return Cell(percent(row.accuracy), interval(row.interval))


def _retained(student: Evaluation, teacher: Evaluation) -> Cell:
    share = retained(student, teacher)["overall"]
    return Cell("" if share is None else percent(share))


def _same(student: Evaluation) -> Cell:
    return Cell("" if student.same_text is None else f"{student.same_text:,} of {student.total.n:,}")


def _acceptance(student: Evaluation) -> Cell:
    """Of each place in the window, where those before it held."""
    return Cell(", ".join(f"{100 * share:.0f} %" for share in student.acceptance))


# --- time ---------------------------------------------------------------------------------------------------------


def times(runs: Sequence[RunRecords]) -> Table:
    """Seconds by part, with their share."""
    parts = list(dict.fromkeys(part for run in runs for part in run.seconds))
    lines = [(part, tuple(_time(run, part) for run in runs)) for part in parts]
    total = ("all", tuple(Cell(duration(sum(run.seconds.values()))) for run in runs))
    return Table("Where the time went", tuple(run.name for run in runs), (*lines, total))


def _time(run: RunRecords, part: str) -> Cell:
    seconds, total = run.seconds.get(part, 0.0), sum(run.seconds.values())
    return Cell(f"{duration(seconds)}, {percent(seconds / total)}" if total else duration(seconds))
