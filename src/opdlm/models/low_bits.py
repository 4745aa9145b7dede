"""Weights and moments in fewer bits. The quantisation itself is bitsandbytes' (arXiv 2110.02861, 2305.14314)."""

import copy
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from opdlm.errors import MissingExtraError, UnsupportedModelError
from opdlm.models.parts import linear_layers

Module = TypeVar("Module", bound=nn.Module)
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


def bfloat16_is_exact(weight: torch.Tensor) -> bool:
    """Whether bfloat16 has the very values of float32 `weight`, as it has of most models that are published in it."""
    return torch.equal(weight, weight.to(torch.bfloat16).to(weight.dtype))


def narrow_frozen(model: PreTrainedModel) -> None:
    """Holds the frozen weights of linear layers in bfloat16, where that is exact: half of their memory.

    Products in bfloat16 come out the same, since they cast a float32 weight each time. Others need `widened`.
    """
    for layer in linear_layers(model).values():
        weight = layer.get_parameter("weight")
        if weight.dtype == torch.float32 and not weight.requires_grad and bfloat16_is_exact(weight):
            weight.data = weight.data.to(torch.bfloat16)


def widened(model: Module) -> Module:
    """A copy with all its weights in float32, in the CPU's memory: a GPU that holds them narrowed may have no room."""
    wide = {id(one): _wide(one) for one in model.parameters()}
    return copy.deepcopy(model, wide).to("cpu")


def _wide(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to("cpu", torch.float32, copy=True), parameter.requires_grad)


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
