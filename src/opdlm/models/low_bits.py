"""Weights and moments in fewer bits. The quantisation itself is bitsandbytes' (arXiv 2110.02861, 2305.14314)."""

from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from opdlm.errors import MissingExtraError, UnsupportedModelError
from opdlm.models.parts import linear_layers

Precision = Literal["float32", "bfloat16", "4bit"]
MOMENTS_FROM = 4096
"""Numbers in a parameter from which on bitsandbytes keeps its moments in 8 bits (`min_8bit_size`)."""


def bitsandbytes() -> Any:
    """The package. Raises MissingExtraError where it is not installed."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError(
            "optimiser.moments 8bit and teacher_precision 4bit need bitsandbytes; install it with: "
            "pip install 'opdlm[low-bits]'"
        ) from error
    return bitsandbytes


def reduced(model: PreTrainedModel, precision: Precision) -> PreTrainedModel:
    """The model itself, its weights in that type: for a teacher, which has no gradients.

    "4bit": the linear layers but the LM head in NF4 with a scale for each 64 weights; what is left in bfloat16.
    Buffers, such as rotary frequencies, stay float32.

    Raises UnsupportedModelError: 4 bits for layers that are no `nn.Linear`.
    """
    if precision == "4bit":
        for name, layer in linear_layers(model).items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _in_4_bits(name, layer))
    if precision != "float32":
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _in_4_bits(name: str, layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Linear):
        kind = type(layer).__name__
        raise UnsupportedModelError(f"{name} is a {kind}, which has no 4 bits; set teacher_precision to bfloat16")
    modules, device, bias = bitsandbytes().nn, layer.weight.device, layer.bias is not None
    shape = (layer.in_features, layer.out_features, bias)
    made = modules.Linear4bit(*shape, torch.bfloat16, quant_type="nf4", device="meta")
    made.weight = modules.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    if bias:
        made.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return made.to(device)  # this quantises
