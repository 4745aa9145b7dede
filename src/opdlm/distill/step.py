"""One training step, in one function.

prompts -> rollout -> states -> teacher's targets -> divergence -> update
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, Self

import torch
from torch import nn

from opdlm.config import DistillSettings
from opdlm.core.types import LossSum, Rollout, StateBatch, TeacherTargets
from opdlm.distill.losses import per_row_mean
from opdlm.distill.pair import Pair
from opdlm.distill.rollout import Written
from opdlm.distill.update import Updater
from opdlm.parallel.interrupts import held
from opdlm.parallel.ranks import Ranks

SAMPLES = 4  # rows of a rollout that are kept to be looked at
Targets = Callable[[Rollout], TeacherTargets | None]
Loss = Callable[[StateBatch, Rollout, TeacherTargets | None], LossSum]


@dataclass(frozen=True)
class Batch:
    """The prompts of one rollout, each with its seed; `responses` where they are given and not written."""

    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    responses: Sequence[Sequence[int]] | None = None

    def rows(self, chosen: Sequence[int]) -> "Batch":
        """The prompts with these numbers."""
        responses = None if self.responses is None else [self.responses[i] for i in chosen]
        return Batch([self.prompts[i] for i in chosen], [self.seeds[i] for i in chosen], responses)


@dataclass(frozen=True)
class Plan:
    """How a training step is done: what a method (`methods.py`) decides.

    Attributes:
        write: who writes the text.
        states: which of its states are trained on, with the weights of their positions; (text, seed of each row) ->.
        targets: the teacher's targets of a text, or None where the loss needs none.
        loss: states, text and targets -> sum.
        writer: the model that writes, if one does.
    """

    write: Callable[[Batch], Written]
    states: Callable[[Rollout, torch.Tensor], StateBatch]
    targets: Targets
    loss: Loss
    writer: nn.Module | None = None


_COUNTED = (
    "tokens_trained",
    "positions_supervised",
    "rollout_forwards",
    "stopped_rows",
    "teacher_query_tokens",
    "student_query_tokens",
)


@dataclass
class StepCounts:
    """What one step did, in honest numbers, all processes together.

    Tokens are response tokens (stop token included, padding never); query tokens are all tokens that a model computed,
    padding of sequences included. `seconds`: wall seconds by part, of this process.
    """

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    tokens_trained: int = 0
    tokens_rolled_out: int = 0
    positions_supervised: int = 0
    rollout_forwards: int = 0
    rollout_query_tokens: int = 0
    teacher_query_tokens: int = 0
    student_query_tokens: int = 0
    stopped_rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    sample: Rollout | None = None

    def copy(self) -> "StepCounts":
        """The same numbers, to be counted on."""
        losses, norms = [*self.losses], [*self.gradient_norms]
        return replace(self, losses=losses, gradient_norms=norms, seconds=dict(self.seconds))

    def add(self, text: Rollout, states: StateBatch, targets: TeacherTargets | None) -> None:
        """Count one micro-batch."""
        self.tokens_trained += int((text.length - text.prompt_length).sum())
        self.positions_supervised += len(states.row)
        self.rollout_forwards += int(text.forwards.sum())
        self.stopped_rows += int(text.stopped.sum())
        self.teacher_query_tokens += targets.query_tokens if targets is not None else 0
        self.student_query_tokens += states.input_ids.numel()

    def numbers(self) -> list[int]:
        """What `add` counts."""
        return [getattr(self, name) for name in _COUNTED]

    def grow(self, numbers: Sequence[float]) -> None:
        """Count what `numbers` of several micro-batches together say."""
        for name, number in zip(_COUNTED, numbers, strict=True):
            setattr(self, name, getattr(self, name) + int(number))


@dataclass
class Begun:
    """A training step that has begun: with it and the weights, an interrupted step goes on where it was.

    Attributes:
        rollout: the text of all processes; None while it is written.
        counts: up to the last update that is done. Always those of the weights, whenever an interruption comes.
    """

    rollout: Rollout | None = None
    counts: StepCounts = field(default_factory=StepCounts)

    @property
    def updates(self) -> int:
        """Those that are done."""
        return len(self.counts.losses)

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint; None where there is nothing to keep."""
        return None if self.rollout is None else {"rollout": vars(self.rollout), "counts": asdict(self.counts)}

    @classmethod
    def of(cls, state: dict[str, Any] | None, device: torch.device) -> Self:
        """What `state` kept."""
        if state is None:
            return cls()
        return cls(Rollout(**state["rollout"]).to(device), StepCounts(**state["counts"]))


def training_step(
    batch: Batch,
    plan: Plan,
    pair: Pair,
    updater: Updater,
    settings: DistillSettings,
    ranks: Ranks,
    begun: Begun | None = None,
) -> StepCounts:
    """Write responses to the prompts, then update the student once for every `rows_per_update` of them.

    All processes do so together, each on its share of every update's rows.

    Args:
        plan: whose `write` gives every process the text of all (see `distill.sharing`).
        begun: of this step, to go on from and to be kept up to date.
    """
    begun = begun or Begun()
    clock, student = _Clock(begun.counts.seconds), pair.student
    if begun.rollout is None:
        written = plan.write(batch)
        clock.lap("rollout")
        begun.counts = StepCounts(rollout_query_tokens=written.query_tokens, seconds=clock.seconds)
        begun.rollout = written.rollout
    rollout = begun.rollout
    all_seeds = torch.tensor(batch.seeds, device=rollout.input_ids.device)

    for rows in torch.arange(len(batch.prompts)).split(settings.rows_per_update)[begun.updates :]:
        counts, own, loss = begun.counts.copy(), StepCounts(), 0.0
        # Micro-batches of similar length hold little padding; while the longest is computed there is no gradient yet.
        rows = rows[rollout.length[rows].cpu().argsort(descending=True, stable=True)]
        parts = micro_batches(rows, settings.rows_per_micro_batch, ranks)
        texts = [rollout.rows(part.rows) for part in parts]
        seeds = [all_seeds[part.rows.to(all_seeds.device)] for part in parts]
        states = [plan.states(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        states = [_weighted(one, part, settings) for one, part in zip(states, parts, strict=True)]
        # One division, by the weight of the whole update: micro-batches and ranks cannot change the result.
        divisor = max(1.0, *ranks.sum(sum(float(one.weight.sum()) for one in states)))
        clock.lap("states")
        for part, text, one in zip(parts, texts, states, strict=True):
            targets = plan.targets(text)
            clock.lap("teacher")
            student.train()  # activations are recomputed, if that is set up; dropout stays off
            with ranks.accumulating(pair.training_pass, last=part is parts[-1]):
                divergence = plan.loss(one, text, targets)
                # The gradients of all processes become their mean, and are to be their sum.
                (divergence.total * ranks.count / divisor).backward()
            student.eval()
            loss += float(divergence.total.detach()) / divisor
            if part.counts:
                own.add(text, one, targets)
            clock.lap("student")
        loss, *numbers = ranks.sum(loss, *own.numbers())
        counts.grow(numbers)
        with held():  # weights and counts move on together
            counts.gradient_norms.append(updater.update(loss, rows.tolist()))
            counts.losses.append(loss)
            clock.lap("optimiser")
            counts.seconds = dict(clock.seconds)
            begun.counts = counts

    return replace(
        begun.counts,
        tokens_rolled_out=begun.counts.tokens_trained if begun.counts.rollout_query_tokens else 0,
        sample=rollout.rows(torch.arange(min(len(batch.prompts), SAMPLES))),
    )


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a rollout that go through one backward pass.

    `counts`: else nothing is learnt from them, and the pass is there because other processes wait for one.
    """

    rows: torch.Tensor
    counts: bool = True


def micro_batches(rows: torch.Tensor, size: int | None, ranks: Ranks) -> list[MicroBatch]:
    """This process's share of an update's `rows`, at most `size` at once; every process has as many micro-batches.

    A process whose rows are fewer takes the last row, the shortest, in place of those that it lacks.
    """
    most = -(-len(rows) // ranks.count)
    size, mine = size or most, rows[ranks.share]
    found = [MicroBatch(part) for part in mine.split(size)] if len(mine) else []
    return found + [MicroBatch(rows[-1:], counts=False)] * (-(-most // size) - len(found))


def _weighted(states: StateBatch, part: MicroBatch, settings: DistillSettings) -> StateBatch:
    """With the weights of the normalisation; none of what does not count."""
    if not part.counts:
        return replace(states, weight=torch.zeros_like(states.weight))
    if settings.normalisation == "global":
        return states
    return per_row_mean(states)


class _Clock:
    """Wall seconds by part, on top of those `before`."""

    def __init__(self, before: dict[str, float]) -> None:
        self.seconds = dict(before)
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
