"""The student's loss on a batch of states: hidden states at masked positions, LM head and divergence in chunks."""

from dataclasses import replace
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from opdlm.config import DistillSettings, ForwardKL, GeneralisedJSD, MixedKL
from opdlm.core import divergence as div
from opdlm.core.layout import Attention
from opdlm.core.types import LossSum, Rollout, StateBatch, TeacherTargets
from opdlm.distill.teacher import Teacher
from opdlm.models.adapt import BlockDiffusionModel

CHUNK_FLOATS = 2**24
"""Logits of one chunk, in floats (64 MiB of float32): rows of a chunk = CHUNK_FLOATS / vocabulary.

With 151,936 tokens, 110 rows: on one core as fast as 220 and 14 % faster than 32 or 440; 256 MiB at its peak.
"""


def log_divergence(settings: DistillSettings) -> div.LogDivergence:
    """The divergence that the settings name, as a function of log-probabilities."""
    chosen = settings.divergence
    if isinstance(chosen, ForwardKL):
        function = div.forward_kl
    elif isinstance(chosen, GeneralisedJSD):
        function = partial(div.generalised_jsd, beta=chosen.beta)
    elif isinstance(chosen, MixedKL):
        function = partial(div.mixed_kl, reverse_weight=chosen.reverse_weight)
    else:
        function = div.reverse_kl
    return function if settings.top_k is None else div.on_top_k(function, settings.top_k, settings.rest_bucket)


def divergence_loss(
    student: BlockDiffusionModel,
    teacher: Teacher,
    function: div.LogDivergence,
    states: StateBatch,
    text: Rollout,
    targets: TeacherTargets | None,
) -> LossSum:
    """Sum of the divergences from the teacher's targets over all supervised positions."""
    assert targets is not None

    def row_losses(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        predicted = student.logits_of(outputs).log_softmax(-1)
        del outputs  # [m, V]
        expected = teacher.logits(targets, states.row[part], states.position[part]).log_softmax(-1)
        return function(expected, predicted)

    return sum_over_positions(student, states, row_losses)


def cross_entropy_loss(
    student: BlockDiffusionModel, states: StateBatch, text: Rollout, targets: TeacherTargets | None
) -> LossSum:
    """Weighted cross-entropy of the text's own tokens: the masked-diffusion objective (`sft`)."""
    tokens = text.input_ids[states.row, states.position]

    def row_losses(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        return cross_entropy(student.logits_of(outputs), tokens[part], reduction="none")

    return sum_over_positions(student, states, row_losses)


def sum_over_positions(student: BlockDiffusionModel, states: StateBatch, row_losses) -> LossSum:
    """Weighted sum of `row_losses` (see `chunked_sum`) over all supervised positions."""
    attention = Attention.within(student.geometry, states.position_ids, states.copy, states.text)
    hidden = student.hidden(states.input_ids, attention)[states.line, states.predictor]
    head = student.head_parameters()
    rows = max(1, CHUNK_FLOATS // head[0].shape[0])
    return div.chunked_sum(hidden, states.weight, states.weight.sum(), head, row_losses, rows)


def per_row_mean(states: StateBatch, rows: int) -> StateBatch:
    """Weights that make the sum over positions a sum of the rows' means (the published normalisation)."""
    per_row = torch.zeros(rows, device=states.weight.device).index_add(0, states.row, torch.ones_like(states.weight))
    return replace(states, weight=states.weight / per_row[states.row])
