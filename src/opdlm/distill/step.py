"""One training step: the method, in one function.

prompts -> rollout -> states -> teacher's targets -> divergence -> update
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

from opdlm.config import DistillSettings
from opdlm.core.states import Selection, select_states
from opdlm.core.types import LossSum, Rollout, StateBatch, TeacherTargets
from opdlm.distill.losses import per_row_mean
from opdlm.distill.teacher import Teacher
from opdlm.distill.update import Updater
from opdlm.models.adapt import BlockDiffusionModel

Writer = Callable[[Sequence[Sequence[int]], Sequence[int]], tuple[Rollout, int]]
Loss = Callable[[StateBatch, Rollout, TeacherTargets], LossSum]


@dataclass
class StepCounts:
    """What one step did, in honest numbers.

    Tokens are response tokens (stop token included, padding never); query tokens are all tokens that a model computed.
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


@dataclass(frozen=True)
class Recipe:
    """How this step's text is written, which of its states are trained on, and by which loss."""

    write: Writer
    selection: Selection
    loss: Loss


def training_step(
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    student: BlockDiffusionModel,
    teacher: Teacher,
    recipe: Recipe,
    updater: Updater,
    settings: DistillSettings,
    mask_token_id: int,
) -> StepCounts:
    """Write responses to the prompts, then update the student once for every `rows_per_update` of them."""
    counts, clock = StepCounts(), _Clock()
    rollout, counts.rollout_query_tokens = recipe.write(prompts, seeds)
    clock.lap("rollout")
    seed = torch.tensor(seeds, device=rollout.input_ids.device)

    for rows in _chunks(len(prompts), settings.rows_per_update):
        batch = []
        for part in _chunks(len(rows), settings.rows_per_micro_batch or len(rows)):
            index = rows[part].to(seed.device)
            texts = rollout.rows(index)
            states = select_states(
                texts, student.geometry, recipe.selection, mask_token_id, seed[index], settings.supervise_end
            )
            batch.append(
                (texts, per_row_mean(states, len(index)) if settings.normalisation == "per_row_mean" else states)
            )
        positions = sum(len(states.row) for _, states in batch)
        # One division, by the count over the whole update: micro-batches cannot change the result.
        divisor = len(rows) if settings.normalisation == "per_row_mean" else max(1, positions)
        clock.lap("states")
        total = 0.0
        for texts, states in batch:
            targets = teacher.targets(texts)
            clock.lap("teacher")
            student.train()  # activations are recomputed, if that is set up; dropout stays off
            loss = recipe.loss(states, texts, targets)
            (loss.total / divisor).backward()
            student.eval()
            total += float(loss.total.detach())
            counts.teacher_query_tokens += texts.input_ids.numel()
            counts.student_query_tokens += states.input_ids.numel()
            clock.lap("student")
        counts.gradient_norms.append(updater.update(total / divisor, rows.tolist()))
        counts.losses.append(total / divisor)
        counts.positions_supervised += positions
        clock.lap("optimiser")

    tokens = int((rollout.length - rollout.prompt_length).sum())
    counts.tokens_trained = counts.tokens_rolled_out = tokens
    counts.rollout_forwards = int(rollout.forwards.sum())
    counts.stopped_rows = int(rollout.stopped.sum())
    counts.seconds = clock.seconds
    return counts


def _chunks(count: int, size: int) -> Iterator[torch.Tensor]:
    yield from torch.arange(count).split(size)


class _Clock:
    """Wall seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
