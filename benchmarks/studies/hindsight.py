"""Supervision by hindsight (HOPD, arXiv 2609.33301; TOPD, arXiv 2607.16872), to see what it adds.

A position hesitates in a state where the student's proposal is not the token that the text has there in the end. Such
positions weigh more. Proposals are those of the training pass: they cost no pass of their own.
"""

import torch

from opdlm.core import divergence as div
from opdlm.core.types import LossSum, Rollout, StateBatch, TeacherTargets
from opdlm.distill.pair import Pair


def hindsight_loss(
    pair: Pair,
    function: div.LogDivergence,
    weight: float,
    states: StateBatch,
    text: Rollout,
    targets: TeacherTargets | None,
) -> LossSum:
    """As `losses.divergence_loss`, with `weight` for each position that hesitates; the divisor stays their number."""
    assert targets is not None
    final = text.input_ids[states.row, states.position]

    def row_losses(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        predicted = pair.student.logits_of(outputs).log_softmax(-1)
        expected = pair.teacher.logits(targets, states.row[part], states.position[part]).log_softmax(-1)
        hesitates = predicted.argmax(-1) != final[part]
        return function(expected, predicted) * torch.where(hesitates, weight, 1.0)

    return pair.training_pass(states, row_losses)
