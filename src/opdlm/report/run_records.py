"""All that a report shows of one run, read from its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from opdlm.config import ConvertSettings, as_text
from opdlm.errors import RecordError
from opdlm.records.evaluation import Comparison, Evaluation
from opdlm.records.history import Resumption
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder
from opdlm.records.trajectory import Trajectory
from opdlm.records.worth import Worth


@dataclass(frozen=True)
class RunRecords:
    """One run as it is on disk now, finished or not.

    Attributes:
        name: as figures and tables call it.
        metrics: of all rollouts so far, at least one. rollouts: number -> rows that were kept of it.
        changes: what resuming it changed.
    """

    name: str
    settings: ConvertSettings
    metrics: Sequence[StepMetrics]
    rollouts: dict[int, list[Trajectory]]
    evaluation: Comparison | None
    worth: Worth | None
    sample: Trajectory | None
    changes: Sequence[Resumption]

    @classmethod
    def read(cls, path: Path, name: str) -> "RunRecords":
        """Raises RecordError where the folder holds no run, no rollout yet, or a damaged file."""
        folder = RunFolder(path)
        if not folder.config.is_file():
            raise RecordError(f"{path} holds no config.toml; give the folder of a run")
        settings, metrics = folder.settings(), folder.logged()
        if not metrics:
            raise RecordError(f"{path} has no finished rollout yet; wait for the first one")
        lossless = settings.method == "lossless"
        rollouts = {
            number: [row.model_copy(update={"verified": lossless}) for row in rows]  # earlier versions did not say
            for number, rows in folder.kept_rollouts().items()
        }
        return cls(
            name=name,
            settings=settings,
            metrics=metrics,
            rollouts=rollouts,
            evaluation=folder.kept_evaluation(),
            worth=folder.kept_worth(),
            sample=folder.kept_sample(),
            changes=folder.changes(),
        )

    @property
    def last(self) -> StepMetrics:
        """The newest metrics: their totals are those of the run."""
        return self.metrics[-1]

    @property
    def lossless(self) -> bool:
        """Whether the weights are unchanged and drafts are verified."""
        return self.settings.method == "lossless"

    @property
    def finished(self) -> bool:
        """All rollouts are done."""
        return self.last.rollout == self.last.rollouts

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Wall seconds by part over all rollouts, the longest first."""
        sums: dict[str, float] = {}
        for metrics in self.metrics:
            for part, value in metrics.seconds.items():
                sums[part] = sums.get(part, 0.0) + value
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    @property
    def usual_student(self) -> Evaluation | None:
        """Of the student as it decodes by default, else by the same rule, else the last one; None without any."""
        if self.evaluation is None or not self.evaluation.students:
            return None
        usual = as_text(self.settings.usual_decoding)
        students = self.evaluation.students
        same_rule = [one for one in students if one.decoding.partition(":")[0] == usual.partition(":")[0]]
        return next((one for one in students if one.decoding == usual), (same_rule or students)[-1])


def read_all(paths: Sequence[Path]) -> list[RunRecords]:
    """Each run under its folder's name, with as many folders before it as tell it from the others."""
    whole = [path.resolve() for path in paths]
    return [RunRecords.read(path, _name(one, whole)) for path, one in zip(paths, whole, strict=True)]


def _name(path: Path, others: Sequence[Path]) -> str:
    for count in range(1, len(path.parts)):
        if sum(other.parts[-count:] == path.parts[-count:] for other in others) == 1:
            return "/".join(path.parts[-count:])
    return str(path)
