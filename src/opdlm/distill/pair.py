"""The student and the teacher that it learns from, with what both read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from opdlm.core.divergence import chunked_sum
from opdlm.core.layout import CLEAN, PADDING, Attention
from opdlm.core.types import LossSum, StateBatch
from opdlm.core.windows import WindowBatch, windows_behind
from opdlm.distill.rollout import Worker
from opdlm.distill.teacher import CleanPass, Teacher
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.models.tokens import SpecialTokens
from opdlm.parallel.ranks import OneProcess, Ranks

RowLosses = Callable[[torch.Tensor, slice], torch.Tensor]
"""(outputs of the LM head [m, V], their slice of the supervised positions) -> [m] float32 losses."""

CHUNK_FLOATS = 2**24
"""Logits of one chunk, in floats (64 MiB of float32): rows of a chunk = CHUNK_FLOATS / vocabulary.

With 151,936 tokens, 110 rows: on one core as fast as 220 and 14 % faster than 32 or 440; 256 MiB at its peak.
"""


class TrainingPass(nn.Module):
    """The student's pass over packed states, LM head included: all that a wrapper around the student must see."""

    def __init__(self, student: BlockDiffusionModel) -> None:
        super().__init__()
        self.student = student

    def hidden(self, states: StateBatch) -> torch.Tensor:
        """[M, D] at the predicting positions."""
        attention = Attention.within(self.student.geometry, states.position_ids, states.stream, states.document)
        return self.student.hidden(states.input_ids, attention)[states.sequence, states.predictor]

    def forward(self, states: StateBatch, row_losses: RowLosses) -> LossSum:
        """Weighted sum of `row_losses` (see `chunked_sum`) over all supervised positions."""
        hidden, head = self.hidden(states), self.student.head_parameters()
        rows = max(1, CHUNK_FLOATS // head[0].shape[0])
        return chunked_sum(hidden, states.weight, states.weight.sum(), head, row_losses, rows)


class WindowPass(nn.Module):
    """The pass of a drafting model over windows, LM head included. Only its gate has gradients."""

    def __init__(self, student: DraftingModel) -> None:
        super().__init__()
        self.student = student

    def hidden(self, states: WindowBatch, clean: CleanPass) -> torch.Tensor:
        """[M, D] at the predicting positions; `clean` holds the keys and values of the texts before the windows."""
        student, stream = self.student, torch.where(clean.valid, CLEAN, PADDING)
        attention = windows_behind(states, clean.position, stream, student.window, student.gate.form == "noise")
        return student.hidden(states.input_ids, attention, clean.prefix)[states.sequence, states.predictor]

    def forward(self, states: WindowBatch, row_losses: RowLosses, clean: CleanPass) -> LossSum:
        """As TrainingPass."""
        hidden, head = self.hidden(states, clean), self.student.head_parameters()
        rows = max(1, CHUNK_FLOATS // head[0].shape[0])
        return chunked_sum(hidden, states.weight, states.weight.sum(), head, row_losses, rows)


def pass_of(student: BlockDiffusionModel) -> nn.Module:
    """The pass in which such a student is trained, with nothing wrapped around it."""
    return WindowPass(student) if isinstance(student, DraftingModel) else TrainingPass(student)


@dataclass(frozen=True)
class Pair:
    """Attributes:
    student: the model that learns. teacher: the frozen original.
    tokens: mask, padding and stop ids of both.
    training_pass: the student's `TrainingPass`, with whatever is wrapped around it.
    worker: writes the student's texts; None: the engine in this process does.
    """

    student: BlockDiffusionModel
    teacher: Teacher
    tokens: SpecialTokens
    training_pass: nn.Module
    worker: Worker | None = None

    @classmethod
    def of(
        cls,
        student: BlockDiffusionModel,
        teacher: Teacher,
        tokens: SpecialTokens,
        ranks: Ranks | None = None,
        worker: Worker | None = None,
    ) -> "Pair":
        """`ranks`: the processes that share the work; default: this one alone. Weights may be divided among them."""
        ranks = ranks or OneProcess()
        ranks.shard(*{id(model): model for model in (student, teacher.model)}.values())
        return cls(student, teacher, tokens, ranks.wrapped(pass_of(student)), worker)
