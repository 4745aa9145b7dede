"""What a search for the fastest decoding found: one trial for each decoding, and which of them is allowed."""

import math

from pydantic import Field, computed_field

from opdlm.records.evaluation import wilson_interval
from opdlm.records.record import Part, Record

_Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Trial(Part):
    """One decoding on the held-out texts.

    Attributes:
        decoding: as `--decoding` takes it.
        quality: of each text, from 0 to 1: whether a problem is solved, or the share of tokens that are the original's
            own choice.
        tokens, forwards, seconds: of all texts.
        bits_per_token: under the original; None where problems were graded.
    """

    decoding: str
    quality: tuple[float, ...]
    tokens: int
    forwards: int
    seconds: float
    bits_per_token: float | None = None

    @computed_field
    @property
    def mean_quality(self) -> float:
        """Mean over the texts."""
        return sum(self.quality) / len(self.quality)

    @computed_field
    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean: Wilson's; for shares, which spread less than right and wrong, it is too wide."""
        return wilson_interval(sum(self.quality), len(self.quality))

    @computed_field
    @property
    def tokens_per_forward(self) -> float:
        """Tokens of the set over forwards of the set."""
        return self.tokens / max(1, self.forwards)

    @computed_field
    @property
    def tokens_per_second(self) -> float:
        """On this machine, at the batch size of the search."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Tuning(Record):
    """What was tried, and what it allows.

    Attributes:
        measure: what quality means: "accuracy" or "agreement". texts: their number.
        reference: the decoding that quality is compared with: one token a step.
        trials: all, the reference among them.
        max_drop: largest drop of the mean quality below the reference's, from 0 to 1.
        batch_size: rows at once; dtype: of the weights. Both decide the speed. data: where the texts came from.
        versions: of what ran.
        before: the decoding that the model had. chosen: the decoding that it gets.
    """

    measure: str
    texts: int
    reference: str
    trials: tuple[Trial, ...]
    max_drop: float
    batch_size: int
    dtype: str = "float32"
    data: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    before: str = ""

    def trial(self, decoding: str) -> Trial:
        """That of a decoding."""
        return next(one for one in self.trials if one.decoding == decoding)

    def drop(self, trial: Trial) -> float:
        """How far the mean quality is below the reference's; negative where it is above."""
        return self.trial(self.reference).mean_quality - trial.mean_quality

    def allowed(self, trial: Trial) -> bool:
        """Whether the drop is at most `max_drop`."""
        return self.drop(trial) <= self.max_drop + 1e-9

    def in_order(self) -> list[Trial]:
        """The allowed ones, the fastest first; then the others, by their drop."""
        allowed = sorted(filter(self.allowed, self.trials), key=lambda one: -one.tokens_per_second)
        others = sorted((one for one in self.trials if not self.allowed(one)), key=self.drop)
        return [*allowed, *others]

    @computed_field
    @property
    def chosen(self) -> str:
        """The fastest that is allowed; the reference always is."""
        return self.in_order()[0].decoding

    def shown(self, trial: Trial) -> bool:
        """Whether the texts are enough to say with 95 % confidence that the drop is at most `max_drop`."""
        return difference_interval(trial, self.trial(self.reference))[0] >= -self.max_drop

    def evidence(self) -> dict[str, object]:
        """What is written beside the choice: all trials, without the quality of each text."""
        return self.model_dump(mode="json", exclude={"trials": {"__all__": {"quality"}}})


def difference_interval(trial: Trial, reference: Trial) -> tuple[float, float]:
    """95 % interval of the mean difference of two trials on the same texts.

    Agresti and Min's for matched pairs (Statistics in Medicine 24, 2005), which adds half a pair of each kind: sound
    where few texts differ. For shares the same pseudo-pairs are added.
    """
    differences = [ours - theirs for ours, theirs in zip(trial.quality, reference.quality, strict=True)]
    n = len(differences) + 2
    mean = sum(differences) / n
    variance = (sum(one * one for one in differences) + 1) / n - mean * mean
    half = _Z_95 * math.sqrt(variance / n)
    return max(-1.0, mean - half), min(1.0, mean + half)
