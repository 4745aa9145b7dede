"""The published code's mask fault, committed on purpose (docs/method.md), to see what it costs.

There the teacher's causal mask is written into the student's mask in place, behind the student's forward pass and
before backward. With gradient checkpointing the backward pass computes each layer again, now under the wrong mask: the
loss is right, its gradient is that of a student which sees nothing to its right inside a block.
"""

from typing import Any

import torch
from torch import nn

from opdlm.models.block_diffusion import BlockDiffusionModel


def commit_mask_fault(student: BlockDiffusionModel) -> None:
    """Turns recomputation of activations on and spoils the mask of each training pass once it is done."""
    student.checkpoint_activations()
    student.model.base_model.register_forward_hook(_make_causal, with_kwargs=True)


def _make_causal(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Hides every key with a larger position id than the query's: what is left is the teacher's mask, [B, 1, Q, K]."""
    if not torch.is_grad_enabled():
        return
    mask, position = kwargs["attention_mask"], kwargs["position_ids"]
    right = position[:, None, None, :] > position[:, None, :, None]
    mask.masked_fill_(right, torch.finfo(mask.dtype).min)
