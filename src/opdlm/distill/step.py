"""One training step, in one function.

prompts -> rollout -> states -> teacher's targets -> divergence -> update
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, Self

import torch

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


@dataclass(frozen=True)
class Plan:
    """How a training step is done: what a method (`methods.py`) decides.

    Attributes:
        write: who writes the text.
        states: which of its states are trained on, with the weights of their positions; (text, seed of each row) ->.
        targets: the teacher's targets of a text, or None where the loss needs none.
        loss: states, text and targets -> sum.
    """

    write: Callable[[Batch], Written]
    states: Callable[[Rollout, torch.Tensor], StateBatch]
    targets: Targets
    loss: Loss


@dataclass
class StepCounts:
    """What one step did, in honest numbers.

    Tokens are response tokens (stop token included, padding never); query tokens are all tokens that a model computed,
    padding of sequences included. `seconds`: wall seconds by part.
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


@dataclass
class Begun:
    """A training step that has begun: with it and the weights, an interrupted step goes on where it was.

    Attributes:
        rollout: the text; None while it is written.
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

    `begun`: of this step, to go on from and to be kept up to date.
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
        counts = begun.counts.copy()
        # Micro-batches of similar length hold little padding; while the longest is computed there is no gradient yet.
        rows = rows[rollout.length[rows].cpu().argsort(descending=True, stable=True)]
        texts = [rollout.rows(part) for part in rows.split(settings.rows_per_micro_batch or len(rows))]
        seeds = all_seeds[rows.to(all_seeds.device)].split([len(text.length) for text in texts])
        states = [_weighted(plan.states(*row), settings) for row in zip(texts, seeds, strict=True)]
        # One division, by the weight of the whole update: micro-batches and ranks cannot change the result.
        divisor = max(1.0, *ranks.sum(sum(float(one.weight.sum()) for one in states)))
        clock.lap("states")
        loss = 0.0
        for text, one in zip(texts, states, strict=True):
            targets = plan.targets(text)
            clock.lap("teacher")
            student.train()  # activations are recomputed, if that is set up; dropout stays off
            divergence = plan.loss(one, text, targets)
            (divergence.total / divisor).backward()
            student.eval()
            loss += float(divergence.total.detach()) / divisor
            counts.add(text, one, targets)
            clock.lap("student")
        (loss,) = ranks.sum(loss)
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


def _weighted(states: StateBatch, settings: DistillSettings) -> StateBatch:
    """With the weights of the normalisation."""
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
