"""One training step, in one function.

prompts -> rollout -> states -> teacher's targets -> divergence -> update
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

from opdlm.config import DistillSettings
from opdlm.core.types import LossSum, Rollout, StateBatch, TeacherTargets
from opdlm.distill.losses import per_row_mean
from opdlm.distill.pair import Pair
from opdlm.distill.rollout import Written
from opdlm.distill.update import Updater
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

    def add(self, text: Rollout, states: StateBatch, targets: TeacherTargets | None) -> None:
        """Count one micro-batch."""
        self.tokens_trained += int((text.length - text.prompt_length).sum())
        self.positions_supervised += len(states.row)
        self.rollout_forwards += int(text.forwards.sum())
        self.stopped_rows += int(text.stopped.sum())
        self.teacher_query_tokens += targets.query_tokens if targets is not None else 0
        self.student_query_tokens += states.input_ids.numel()


def training_step(
    batch: Batch, plan: Plan, pair: Pair, updater: Updater, settings: DistillSettings, ranks: Ranks
) -> StepCounts:
    """Write responses to the prompts, then update the student once for every `rows_per_update` of them."""
    counts, clock, student = StepCounts(), _Clock(), pair.student
    written = plan.write(batch)
    rollout, counts.rollout_query_tokens = written.rollout, written.query_tokens
    clock.lap("rollout")
    all_seeds = torch.tensor(batch.seeds, device=rollout.input_ids.device)

    for rows in torch.arange(len(batch.prompts)).split(settings.rows_per_update):
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
        counts.gradient_norms.append(updater.update(loss, rows.tolist()))
        counts.losses.append(loss)
        clock.lap("optimiser")

    counts.tokens_rolled_out = counts.tokens_trained if counts.rollout_query_tokens else 0
    counts.seconds = clock.seconds
    counts.sample = rollout.rows(torch.arange(min(len(batch.prompts), SAMPLES)))
    return counts


def _weighted(states: StateBatch, settings: DistillSettings) -> StateBatch:
    """With the weights of the normalisation."""
    if settings.normalisation == "global":
        return states
    return per_row_mean(states)


class _Clock:
    """Wall seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
