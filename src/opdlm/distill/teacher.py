"""The frozen ARLM: its targets for a rollout, from one causal pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from opdlm.core.layout import causal
from opdlm.core.lines import share_lines
from opdlm.core.types import Rollout, TeacherTargets
from opdlm.models.adapt import BlockDiffusionModel


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
        text, position = (columns < rollout.length[:, None]).nonzero(as_tuple=True)
        lines = share_lines(rollout.length, self.model.line_capacity)
        place = lines.place(text, position)
        ids = lines.laid(rollout.input_ids[text, position], place, 0)
        with self.frozen():
            if lines.count == len(rollout.length):  # no text found room beside another: a plain causal pass is faster
                hidden = self.model.causal_hidden(ids)
            else:
                text_ids = lines.text_ids(text, place)
                attention = causal(lines.laid(position, place, 0), text_ids >= 0, text_ids)
                hidden = self.model.hidden(ids, attention)
        # Token i is predicted at i - 1: from the prompt's last token to the one before the end.
        predicts = (position >= rollout.prompt_length[text] - 1) & (position < rollout.length[text] - 1)
        responses = rollout.length - rollout.prompt_length
        offset = responses.cumsum(0) - responses - rollout.prompt_length
        return TeacherTargets(hidden.flatten(0, 1)[place[predicts]], offset, ids.numel())

    @torch.no_grad()
    def logits(self, targets: TeacherTargets, row: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """[m, V] float32: what the ARLM, having read the text before `position` of `row`, expects there."""
        with self.frozen():
            return self.model.logits(targets.hidden[targets.offset[row] + position])
