"""report.html: one file with no outside parts, made from what runs left on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import opdlm
from opdlm import viewer
from opdlm.errors import StorageError
from opdlm.records.evaluation import empty_hints
from opdlm.records.trajectory import Trajectory
from opdlm.report import tables
from opdlm.report.run_records import RunRecords, read_all

REPORT = "report.html"
MOST_ROLLOUTS = 8  # that are shown of a run, from the first to the last
ROWS = 2  # of each


@dataclass(frozen=True)
class _Section:
    """A heading with what stands below it; `more` is folded away."""

    title: str
    text: str = ""
    table: tables.Table | None = None
    more: tables.Table | None = None
    figures: Sequence[Any] = ()


def write_report(runs: Sequence[Path], target: Path, figures: Path | None = None) -> Path:
    """One page about `runs` at `target`, which it returns.

    Args:
        figures: folder for the figures as .svg and .png files too; it is made if need be.

    Raises:
        RecordError: a folder holds no run or no finished rollout, or one of its files is damaged.
        StorageError: the report cannot be written.
    """
    found = read_all(runs)
    sections = list(_sections(found))
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=", ".join(run.name for run in found),
            version=opdlm.__version__,
            hints=list(_hints(found)),
            sections=sections,
            shown=[{"name": run.name, "texts": list(_texts(run))} for run in found],
            viewer_style=Markup(viewer.style()),
            viewer_script=Markup(viewer.script()),
        )
    )
    try:
        _write(target, page.encode())
        if figures is not None:
            figures.mkdir(parents=True, exist_ok=True)
            for figure in (figure for section in sections for figure in section.figures):
                for suffix, content in figure.files.items():
                    _write(figures / f"{figure.name}.{suffix}", content)
    except OSError as error:
        raise StorageError(f"{error.filename} could not be written ({error.strerror}); free some space") from error
    return target


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: somebody may be looking at the page while it is refreshed."""
    draft = path.with_name(f"{path.name}.partial")
    draft.write_bytes(content)
    draft.replace(path)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("opdlm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _sections(runs: Sequence[RunRecords]) -> Iterator[_Section]:
    from opdlm.report import figures  # takes a second

    yield _Section("What was done", table=tables.facts(runs))
    for run in runs:
        if run.evaluation is not None:
            more = tables.groups(run, run.evaluation)
            yield _Section("Teacher and student", table=tables.comparison(run, run.evaluation), more=more)
    missing = [run.name for run in runs if run.evaluation is None]
    if missing:
        yield _Section(
            "Not evaluated yet",
            f"{', '.join(missing)}: no answers were compared with the teacher's. "
            "opdlm eval RUN --problems FILE.jsonl --json RUN/evaluation.json adds them to the next report.",
        )
    if found := figures.frontier(runs):
        text = "Further right is faster, further up is better. Tokens per forward are the same on every machine."
        yield _Section("Speed and quality", text, figures=found)
    if found := figures.by_task(runs):
        text = "Each task on its own: what the student lost lies left of the teacher."
        yield _Section("Forgetting", text, figures=found)
    if found := figures.training(runs):
        yield _Section("Training", figures=found)
    yield _Section("Where the time went", table=tables.times(runs), figures=figures.time(runs))


def _hints(runs: Sequence[RunRecords]) -> Iterator[str]:
    """What is wrong with a run, as far as its records show it."""
    for run in runs:
        found = run.worth.hints() if run.worth is not None and run.worth.after is not None else []
        if run.evaluation is not None:
            found += empty_hints([run.evaluation.teacher, *run.evaluation.students])
        yield from (f"{run.name}: {hint}" for hint in found)


# --- texts for the viewer -----------------------------------------------------------------------------------------


def _texts(run: RunRecords) -> Iterator[dict[str, Any]]:
    """Rollouts from the first to the last, then the finished model's answer."""
    for number in _spread(sorted(run.rollouts)):
        for row, trajectory in enumerate(run.rollouts[number][:ROWS]):
            yield {"label": f"rollout {number:,}, text {row + 1}", "record": _record(trajectory)}
    if run.sample is not None:
        yield {"label": "the finished model", "record": _record(run.sample)}


def _spread(numbers: Sequence[int]) -> list[int]:
    """At most MOST_ROLLOUTS of them, evenly, the first and the last among them."""
    if len(numbers) <= MOST_ROLLOUTS:
        return list(numbers)
    last = len(numbers) - 1
    return [numbers[round(place * last / (MOST_ROLLOUTS - 1))] for place in range(MOST_ROLLOUTS)]


def _record(trajectory: Trajectory) -> dict[str, Any]:
    return trajectory.model_dump(mode="json", exclude={"prompt_ids"}, exclude_none=True) | _sparse(trajectory)


def _sparse(trajectory: Trajectory) -> dict[str, Any]:
    """Lists that hold None keep it: their places count."""
    return {} if trajectory.kl is None else {"kl": list(trajectory.kl)}
