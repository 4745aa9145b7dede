"""How near the student is to its teacher, on what the student writes to a few prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from opdlm.config import GenerationSettings
from opdlm.core.states import StateChoice, select_states
from opdlm.core.types import Rollout
from opdlm.core.windows import WindowChoice, select_windows
from opdlm.distill.losses import divergence_loss, window_loss
from opdlm.distill.pair import Pair
from opdlm.distill.rollout import written_by_student
from opdlm.models.drafting import DraftingModel
from opdlm.records.worth import Validation
from opdlm.sampling.requests import continuations

MOST_PROMPTS = 16
MOST_TOKENS = 32


@dataclass(frozen=True)
class Validator:
    """Attributes:
    prompts: token ids.
    settings: how the student writes; greedily, so that no random number is drawn. batch_size: rows at once.
    """

    prompts: Sequence[Sequence[int]]
    settings: GenerationSettings
    batch_size: int

    @torch.no_grad()
    def __call__(self, pair: Pair) -> Validation:
        """One short response to each prompt, and one pass of student and teacher over all of them."""
        requests = continuations(self.prompts, self.settings)
        rollout = written_by_student(pair.student, pair.tokens, requests, self.batch_size).rollout
        written = rollout.length - rollout.prompt_length
        return Validation.of(
            (written - rollout.stopped.long()).tolist(),
            tokens=int(written.sum()),
            agreed=agreed(pair, rollout),
            forwards=int(rollout.forwards.sum()),
        )


def agreed(pair: Pair, rollout: Rollout) -> int:
    """Response tokens for which the student, its whole block still masked, has the teacher's first choice.

    The teacher has read the text up to each token, the student only what stands before the block: what training is
    for. What the student writes a token at a time would agree with a teacher that it is a copy of.
    """
    student, no_draw = pair.student, torch.zeros_like(rollout.length)
    if isinstance(student, DraftingModel):
        return _foreseen(pair, student, rollout, no_draw)
    at_once = replace(rollout, commit_step=rollout.commit_step.clamp(max=0))  # as if each block took one step
    choice, mask = StateChoice("all"), student.mask_token_id
    states = select_states(
        at_once, student.geometry, choice, no_draw, mask_token_id=mask, capacity=student.packing_capacity
    )
    return int(divergence_loss(pair, _same_choice, states, rollout, pair.teacher.targets(rollout)).total)


def _foreseen(pair: Pair, student: DraftingModel, rollout: Rollout, no_draw: torch.Tensor) -> int:
    """The same for drafts: those at the first place of a window behind each token."""
    vocabulary = student.head_parameters()[0].shape[0] if student.gate.form == "noise" else 0
    states = select_windows(rollout, WindowChoice(student.window, "all", vocabulary), no_draw)
    anchor = states.anchor[states.row, states.predictor]
    states = replace(states, weight=(states.position == anchor + 1).float())
    return int(window_loss(pair, _same_choice, states, rollout, pair.teacher.clean_pass(rollout)).total)


def _same_choice(expected: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """[m, V], [m, V] -> [m] float32, 1 where both have the same largest entry."""
    return (expected.argmax(-1) == predicted.argmax(-1)).float()
