"""Linear layers whose weights are laid out for a CPU's matrix kernels (oneDNN), for decoding.

A product of few tokens, as each forward of decoding is, otherwise spends much of its time on the weights' own layout.
torch's compiler does the same when it freezes a model (`torch/_inductor/fx_passes/mkldnn_fusion.py`); these are its
operators, called directly.
"""

import platform
from collections import Counter

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

_FEWEST = 3
"""Tokens of a product: the kernel takes longer for one or two than for four."""
SMALLEST = 100_000
"""Weights of a layer: smaller ones take longer to call than to compute."""


class PackedLinear(nn.Linear):
    """A linear layer for inference. `packed` is its weight, too, unless the embedding shares that."""

    packed: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., N]."""
        tokens = input.shape[:-1].numel()
        if not 0 < tokens < _FEWEST:
            return _product(input, self.packed, self.bias)
        few = pad(input.reshape(tokens, -1), (0, 0, 0, _FEWEST + 1 - tokens))
        return _product(few, self.packed, self.bias)[:tokens].reshape(*input.shape[:-1], -1)


def _product(input: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this machine's torch has kernels that gain from it."""
    x86 = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not x86 or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_where_it_pays(model: PreTrainedModel, smallest: int = SMALLEST) -> None:
    """Packs the linear layers of a model on a CPU, in place, from `smallest` weights on.

    From then on it only computes: it cannot be trained, copied or saved.
    """
    if not can_pack(model.device, model.dtype):
        return
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for layer in list(model.modules()):
        if type(layer) is not nn.Linear or layer.weight.numel() < smallest:
            continue
        alone = users[id(layer.weight)] == 1  # else it is the embedding's, too, which reads it as it is
        packed = pack_layer(layer)
        if alone:
            layer.weight = nn.Parameter(packed, requires_grad=False)


def pack_layer(layer: nn.Linear) -> torch.Tensor:
    """Makes `layer` a PackedLinear, beside its weights; returns what it packed. Its hooks stay."""
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
    layer.__class__ = PackedLinear
    layer.packed = packed  # type: ignore[attr-defined]
    return packed
