"""The frozen ARLM: its targets for a rollout, from one causal pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

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
        with self.frozen():
            return TeacherTargets(self.model.causal_hidden(rollout.input_ids))

    @torch.no_grad()
    def logits(self, targets: TeacherTargets, row: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """[m, V] float32: what the ARLM, having read the text before `position` of `row`, expects there."""
        with self.frozen():
            return self.model.logits(targets.hidden[row, position - 1])
