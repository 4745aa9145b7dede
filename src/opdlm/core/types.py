"""The records that travel between the rooms. Frozen; each field with shape, dtype and unit.

Shape letters: B rows, T positions, P prompt, L response, S block size, N blocks, R denoising steps, V vocabulary,
K top-k, Q query positions, M supervised (masked) positions of a batch, D hidden size.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch

NEVER = 32_000
"""`commit_step` of a position that the decoder never filled (it stopped before, after the end of the sequence)."""


@dataclass(frozen=True)
class Geometry:
    """How a sequence is divided into blocks and what a block sees: one for the whole project (docs/method.md).

    Attributes:
        block_size: S; block(i) = position_id(i) // S, the prompt included.
        prediction: "same": the output at i predicts token i. "shifted": the output at i-1 predicts token i.
        context: attention among finished tokens: "block" (bidirectional inside a block) or "causal".
    """

    block_size: int
    prediction: Literal["same", "shifted"] = "same"
    context: Literal["block", "causal"] = "block"


class _Tensors:
    """Moves every tensor field at once."""

    def to(self, device: torch.device | str) -> Self:
        moved = {
            f.name: value.to(device)
            for f in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class Rollout(_Tensors):
    """Prompts with the responses that a model wrote, and the denoising step in which each token was committed.

    A row holds whole blocks: behind `length` the rest of the last block may follow, as the decoder left it (it is part
    of the visited states, never of the loss), then padding. Column = position id; rows are aligned to the left.

    Attributes:
        input_ids: [B, T] int64. Prompt, response, rest of the last block, padding.
        prompt_length: [B] int64, tokens.
        length: [B] int64, tokens of prompt + response up to and including the first stop token, or to the length cap.
        end: [B] int64, first column behind the row's last block.
        commit_step: [B, T] int16. Denoising step of its block that committed the token, from 0; -1 in the prompt;
            NEVER where the decoder left a mask and in the padding.
        stopped: [B] bool, the response ends with a stop token (False: cut at the cap).
        forwards: [B] int64, denoising steps of the row: forwards in which it took part, but for one over prompts alone.
        confidence: [B, T] float32, the model's own probability for each token when it was committed; 0 where none was.
            None where no decoder wrote the text.
        top_ids, top_log_probability: [B, T, A] int64 and float32 nats, the A most probable tokens where each token was
            committed, by the model's own distribution; meaningless elsewhere. None where they were not asked for.
    """

    input_ids: torch.Tensor
    prompt_length: torch.Tensor
    length: torch.Tensor
    end: torch.Tensor
    commit_step: torch.Tensor
    stopped: torch.Tensor
    forwards: torch.Tensor
    confidence: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_log_probability: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> "Rollout":
        """The rows `index` [b], trimmed to the longest of them."""
        index = index.to(self.length.device)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        picked = {name: value[index] for name, value in values.items() if value is not None}
        width = int(picked["end"].max())
        return Rollout(**{name: value[:, :width] if value.dim() > 1 else value for name, value in picked.items()})


@dataclass(frozen=True)
class StateBatch(_Tensors):
    """Packed sequences for the student: [clean prompt + response | noised blocks], and what is to be predicted.

    Each row of the rollout is one document; documents that fit together share a sequence.

    Attributes:
        input_ids: [N, Q] int64, N sequences; masked positions hold the mask token.
        position_ids: [N, Q] int64; a noised token reuses the position id of the token that it stands for.
        stream: [N, Q] int64; 0 the clean stream, 1, 2, ... the noised ones, -1 padding. Noised streams never see each
            other.
        document: [N, Q] int64, rollout row of each token, below 0 in the padding. Documents never see each other.
        row: [M] int64, rollout row of each supervised position.
        sequence: [M] int64, its sequence.
        predictor: [M] int64, column in that sequence whose output predicts it.
        position: [M] int64, its position id: the column in the rollout, and the teacher's target.
        weight: [M] float32, factor of its loss (1 but for the weighted cross-entropy of `sft`).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    stream: torch.Tensor
    document: torch.Tensor
    row: torch.Tensor
    sequence: torch.Tensor
    predictor: torch.Tensor
    position: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class TeacherTargets(_Tensors):
    """What the teacher says of each response position of a rollout: computed once, used for every state and update.

    Attributes:
        hidden: [N, D] the teacher's final hidden states of the causal pass, without padding; entry
            `offset[row] + position` gives the target of token `position` of that row.
        offset: [B] int64.
        query_tokens: tokens that the teacher computed for them, padding included.
    """

    hidden: torch.Tensor
    offset: torch.Tensor
    query_tokens: int


@dataclass(frozen=True)
class LossSum:
    """A sum and a count; the caller divides once, by the global count.

    Attributes:
        total: [] float32, sum of the losses, in nats, with its gradient.
        count: [] float32, sum of the weights: the number of positions where all are 1, of rows for the per-row mean.
    """

    total: torch.Tensor
    count: torch.Tensor
