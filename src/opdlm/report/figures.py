"""The figures of a report: all runs on the same axes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from opdlm.records.evaluation import Evaluation
from opdlm.records.metrics import StepMetrics
from opdlm.report import drawing
from opdlm.report.drawing import Figure, Ticks
from opdlm.report.run_records import RunRecords
from opdlm.report.tables import is_of_its_own
from opdlm.report.words import duration, short

# --- speed and quality --------------------------------------------------------------------------------------------


def frontier(runs: Sequence[RunRecords]) -> list[Figure]:
    """Accuracy against tokens per forward and against tokens per second; nothing where no run was evaluated."""
    evaluated = [run for run in runs if run.evaluation is not None]
    if not evaluated:
        return []
    return [
        _frontier(evaluated, "frontier-forward", "tokens per forward", lambda one: one.tokens_per_forward),
        _frontier(evaluated, "frontier-seconds", "tokens per second", lambda one: one.tokens_per_second),
    ]


def _frontier(runs: Sequence[RunRecords], name: str, unit: str, speed: Callable[[Evaluation], float]) -> Figure:
    title = f"Share of problems answered right, with its 95 % interval, against {unit}"
    with drawing.axes(height=3.9) as (canvas, pane):
        for label, one, index in _points(runs):
            score = one.total
            low, high = score.interval
            spread = [[max(0.0, score.accuracy - low)], [max(0.0, high - score.accuracy)]]
            looks = {**drawing.look(index), "linestyle": "none"}
            pane.errorbar([speed(one)], [score.accuracy], yerr=spread, label=label, capsize=2, markersize=7, **looks)
        pane.set_xlabel(unit)
        pane.set_ylabel("problems answered right")
        pane.margins(0.1, 0.08)
        drawing.ticks_of_numbers(pane.xaxis)
        drawing.ticks_of_shares(pane.yaxis)
        drawing.legend_below(canvas, pane)
        return drawing.finished(canvas, name, title)


def _points(runs: Sequence[RunRecords]) -> Iterator[tuple[str, Evaluation, int]]:
    """(label, evaluation, number of its look) of every decoding; a teacher that several runs share comes once."""
    seen: dict[str, Evaluation] = {}
    index = 0
    for run in runs:
        assert run.evaluation is not None
        teacher, front = run.evaluation.teacher, f"{short(run.name)}: " if len(runs) > 1 else ""
        others = seen.get(run.settings.model)
        if others is None or others.rows != teacher.rows:
            seen[run.settings.model] = teacher
            yield f"{front if seen else ''}teacher", teacher, index
            index += 1
        for student in run.evaluation.students:
            yield f"{front}{student.decoding or student.name}", student, index
            index += 1


# --- forgetting ---------------------------------------------------------------------------------------------------


def by_task(runs: Sequence[RunRecords]) -> list[Figure]:
    """Accuracy of each task, teacher and student; one run with all its decodings, several with their usual one."""
    evaluated = [run for run in runs if run.evaluation is not None]
    if not evaluated:
        return []
    first = evaluated[0].evaluation
    assert first is not None
    if len(evaluated) == 1:
        shown = [("teacher", first.teacher), *((one.decoding or one.name, one) for one in first.students)]
    else:
        usual = ((run.name, run.usual_student) for run in evaluated)
        shown = [("teacher", first.teacher), *((f"{short(name)}, {one.decoding}", one) for name, one in usual if one)]
    tasks = list(dict.fromkeys(row.label for _, one in shown for row in one.rows if is_of_its_own(row)))
    title = "Share of right answers by task, with its 95 % interval: what was forgotten lies left of the teacher"
    with drawing.axes(height=1.2 + 0.16 * (len(tasks) + 1) * (len(shown) + 1) + 0.1 * len(shown)) as (canvas, pane):
        for index, (label, one) in enumerate(shown):
            offset = 0.75 * ((index + 0.5) / len(shown) - 0.5)
            for row in filter(is_of_its_own, one.rows):
                low, high = row.interval
                spread = [[max(0.0, row.accuracy - low)], [max(0.0, high - row.accuracy)]]
                looks = {**drawing.look(index), "linestyle": "none"}
                place = [tasks.index(row.label) + offset]
                pane.errorbar([row.accuracy], place, xerr=spread, label=label, capsize=2, markersize=5, **looks)
        pane.set_yticks(range(len(tasks)), [task.replace("/", ", ") for task in tasks])
        pane.set_ylim(len(tasks) - 0.5, -0.5)
        pane.set_xlim(-0.02, 1.02)
        pane.set_xlabel("answered right")
        drawing.ticks_of_shares(pane.xaxis)
        drawing.legend_below(canvas, pane)
        return [drawing.finished(canvas, "tasks", title)]


# --- training -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One number of every rollout.

    Attributes:
        name: as trackers call it, with "/" between groups. unit: "" for a number without one.
        value: None where a rollout has none.
    """

    name: str
    title: str
    unit: str
    value: Callable[[StepMetrics], float | None]
    ticks: Ticks = drawing.ticks_of_numbers


CURVES = (
    Curve("loss", "Loss", "nats a position", lambda m: m.loss),
    Curve("tokens_per_forward", "Tokens per forward in rollouts", "", lambda m: m.tokens_per_forward or None),
    Curve(
        "validation/agreement",
        "Agreement with the teacher",
        "share of tokens",
        lambda m: None if m.validation is None else m.validation.agreement,
        drawing.ticks_of_shares,
    ),
    Curve("gradient_norm", "Gradient norm before clipping", "", lambda m: m.gradient_norm),
    Curve("learning_rate", "Learning rate", "", lambda m: m.learning_rate, drawing.ticks_of_powers),
    Curve("peak_memory_bytes", "Peak memory so far", "GiB", lambda m: m.peak_memory_bytes / 2**30),
)


def training(runs: Sequence[RunRecords]) -> list[Figure]:
    """The curves that have at least two points in some run."""
    return [figure for curve in CURVES if (figure := _curve(curve, runs)) is not None]


def _curve(curve: Curve, runs: Sequence[RunRecords]) -> Figure | None:
    longest = 0
    with drawing.axes() as (canvas, pane):
        for index, run in enumerate(runs):
            points = [(m.total.tokens_trained, value) for m in run.metrics if (value := curve.value(m)) is not None]
            longest = max(longest, len(points))
            if not points:
                continue
            x, y = drawing.binned([x for x, _ in points], [y for _, y in points])
            looks = {**drawing.look(index), "marker": drawing.look(index)["marker"] if len(x) <= 20 else None}
            pane.plot(x, y, label=short(run.name), linewidth=1.6, markersize=4, **looks)
        if longest < 2:
            return None
        low, high = pane.get_ylim()
        pane.set_ylim(min(0.0, low), high * 1.05 if high > 0 else 1.0)
        pane.set_xlim(left=0)
        pane.set_xlabel("response tokens trained on")
        pane.set_ylabel(f"{curve.title.lower()}\n{curve.unit}".rstrip())
        drawing.ticks_of_amounts(pane.xaxis)
        curve.ticks(pane.yaxis)
        if len(runs) > 1:
            drawing.legend_below(canvas, pane)
        return drawing.finished(canvas, curve.name.replace("/", "-").replace("_", "-"), curve.title)


# --- time ---------------------------------------------------------------------------------------------------------


def time(runs: Sequence[RunRecords]) -> list[Figure]:
    """A bar a run, divided by what took the time."""
    parts = list(dict.fromkeys(part for run in runs for part in run.seconds))
    with drawing.axes(height=1.5 + 0.45 * len(runs)) as (canvas, pane):
        for row, run in enumerate(runs):
            total, left = sum(run.seconds.values()) or 1.0, 0.0
            for part in parts:
                share = run.seconds.get(part, 0.0) / total
                colour = drawing.COLOURS[parts.index(part) % len(drawing.COLOURS)]
                pane.barh(row, share, left=left, height=0.6, color=colour, label=part, edgecolor=drawing.LINE)
                left += share
        pane.set_yticks(range(len(runs)), [f"{short(run.name)}\n{duration(sum(run.seconds.values()))}" for run in runs])
        pane.set_ylim(len(runs) - 0.5, -0.5)
        pane.set_xlim(0, 1)
        pane.grid(visible=False, axis="y")
        pane.set_xlabel("share of the wall time")
        drawing.ticks_of_shares(pane.xaxis)
        drawing.legend_below(canvas, pane, columns=4)
        return [drawing.finished(canvas, "time", "Where the wall time went, by part of the training")]
