"""The student's loss on a batch of states: what is compared at each supervised position."""

from dataclasses import replace
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from opdlm.config import DistillSettings, ForwardKL, GeneralisedJSD, MixedKL, TotalVariation
from opdlm.core import divergence as div
from opdlm.core.types import LossSum, Rollout, StateBatch, TeacherTargets
from opdlm.distill.pair import Pair, RowLosses
from opdlm.distill.teacher import CleanPass


def log_divergence(settings: DistillSettings) -> div.LogDivergence:
    """The divergence that the settings name, as a function of log-probabilities."""
    chosen = settings.divergence
    if isinstance(chosen, ForwardKL):
        function = div.forward_kl
    elif isinstance(chosen, GeneralisedJSD):
        function = partial(div.generalised_jsd, beta=chosen.beta)
    elif isinstance(chosen, TotalVariation):
        function = div.total_variation
    elif isinstance(chosen, MixedKL):
        function = partial(div.mixed_kl, reverse_weight=chosen.reverse_weight)
    else:
        function = div.reverse_kl
    return function if settings.top_k is None else div.on_top_k(function, settings.top_k, settings.rest_bucket)


def divergence_loss(
    pair: Pair, function: div.LogDivergence, states: StateBatch, text: Rollout, targets: TeacherTargets | None
) -> LossSum:
    """Sum of the divergences from the teacher's targets over all supervised positions."""
    assert targets is not None
    return pair.training_pass(states, _from_teacher(pair, function, states, targets))


def window_loss(
    pair: Pair, function: div.LogDivergence, states: StateBatch, text: Rollout, targets: TeacherTargets | None
) -> LossSum:
    """The same for windows, which the student computes behind the keys and values of the teacher's own pass."""
    assert isinstance(targets, CleanPass)
    return pair.training_pass(states, _from_teacher(pair, function, states, targets), targets)


def _from_teacher(pair: Pair, function: div.LogDivergence, states: StateBatch, targets: TeacherTargets) -> RowLosses:
    def row_losses(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        predicted = pair.student.logits_of(outputs).log_softmax(-1)
        del outputs  # [m, V]
        expected = pair.teacher.logits(targets, states.row[part], states.position[part]).log_softmax(-1)
        return function(expected, predicted)

    return row_losses


def cross_entropy_loss(pair: Pair, states: StateBatch, text: Rollout, targets: TeacherTargets | None) -> LossSum:
    """Weighted cross-entropy of the text's own tokens: the masked-diffusion objective (`sft`)."""
    tokens = text.input_ids[states.row, states.position]

    def row_losses(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        return cross_entropy(pair.student.logits_of(outputs), tokens[part], reduction="none")

    return pair.training_pass(states, row_losses)


def per_row_mean(states: StateBatch) -> StateBatch:
    """Weights that make the sum over positions a sum of the rows' means (the published normalisation)."""
    ones = torch.ones_like(states.weight)
    rows = int(states.row.max()) + 1 if len(states.row) else 0
    per_row = ones.new_zeros(rows).index_add(0, states.row, ones)
    return replace(states, weight=states.weight / per_row[states.row])
