"""The frozen AR model: its targets for a rollout, from one causal pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from opdlm.core.layout import causal
from opdlm.core.packing import pack
from opdlm.core.types import Rollout, TeacherTargets
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.cache import FrozenPrefix


@dataclass(frozen=True)
class CleanPass(TeacherTargets):
    """The AR model's pass over whole texts, a row each: its targets, and what windows behind any of its tokens see.

    Attributes:
        prefix: keys and values of all layers. position: [B, T] int64. valid: [B, T] bool, not padding.
    """

    prefix: FrozenPrefix
    position: torch.Tensor
    valid: torch.Tensor


class Teacher:
    """The original model. It sees clean text under its own causal mask, never a noised block.

    With an adapter the teacher is the student's own weights with the adapter off: `frozen` is the context that switches
    it off, and no second model is in memory.
    """

    def __init__(self, model: BlockDiffusionModel, frozen: Callable[[], AbstractContextManager] = nullcontext) -> None:
        self.model, self.frozen = model, frozen

    @torch.no_grad()
    def targets(self, rollout: Rollout) -> TeacherTargets:
        """One causal pass over prompt + response. It does not depend on the states: compute once, use for all."""
        columns = torch.arange(rollout.input_ids.shape[1], device=rollout.input_ids.device)
        document, position = (columns < rollout.length[:, None]).nonzero(as_tuple=True)
        packing = pack(rollout.length, self.model.packing_capacity)
        place = packing.place(document, position)
        ids = packing.laid(rollout.input_ids[document, position], place, 0)
        with self.frozen():
            if packing.count == len(rollout.length):  # no document found room beside another: a plain pass is faster
                hidden = self.model.causal_hidden(ids)
            else:
                document_ids = packing.document_ids(document, place)
                attention = causal(packing.laid(position, place, 0), document_ids >= 0, document_ids)
                hidden = self.model.hidden(ids, attention)
        predicts, offset = _predicting(rollout, document, position)
        return TeacherTargets(hidden.flatten(0, 1)[place[predicts]], offset, ids.numel())

    @torch.no_grad()
    def clean_pass(self, rollout: Rollout) -> CleanPass:
        """As `targets`, of a drafting model that is its own teacher; keys and values are kept for its windows."""
        ids = rollout.input_ids
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        valid = position < rollout.length[:, None]
        prefix = FrozenPrefix()
        hidden = self.model.hidden(ids, causal(position, valid), prefix)
        prefix.seal()
        document, column = valid.nonzero(as_tuple=True)
        predicts, offset = _predicting(rollout, document, column)
        return CleanPass(hidden[document[predicts], column[predicts]], offset, ids.numel(), prefix, position, valid)

    @torch.no_grad()
    def logits(self, targets: TeacherTargets, row: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """[m, V] float32: what the AR model, having read the text before `position` of `row`, expects there."""
        with self.frozen():
            return self.model.logits(targets.hidden[targets.offset[row] + position])


def _predicting(rollout: Rollout, document: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the tokens [M] predict response tokens, and `TeacherTargets.offset`.

    Token i is predicted at i - 1: from the prompt's last token to the one before the end.
    """
    predicts = (position >= rollout.prompt_length[document] - 1) & (position < rollout.length[document] - 1)
    responses = rollout.length - rollout.prompt_length
    return predicts, responses.cumsum(0) - responses - rollout.prompt_length
