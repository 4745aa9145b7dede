"""LoRA conversion: only an adapter trains, and the teacher is the same weights with the adapter off.

LoRA: arXiv 2106.09685. Layers and merging are peft's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from opdlm.errors import ConfigError, MissingExtraError
from opdlm.models.low_bits import widened
from opdlm.models.parts import linear_layers
from opdlm.parallel.interrupts import held


def add_adapter(model: PreTrainedModel, rank: int) -> None:
    """Put a LoRA adapter of `rank` on every linear layer but the LM head; all other weights stop training.

    Raises MissingExtraError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("--lora-rank needs peft; install it with: pip install 'opdlm[lora]'") from error
    targets = list(linear_layers(model))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), model)


def largest_rank(model: PreTrainedModel) -> int:
    """Of an adapter for every layer: the rank of the smallest."""
    return min(min(layer.get_parameter("weight").shape) for layer in linear_layers(model).values())


def check_rank(model: PreTrainedModel, rank: int) -> None:
    """Raises ConfigError where a layer has fewer rows or columns than that."""
    if rank > (most := largest_rank(model)):
        raise ConfigError(f"setting lora_rank: {rank} is above the rank of the smallest layer; give at most {most}")


@contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """The original model, for as long as the context lasts."""
    layers = _adapted(model)
    try:
        with held():  # an interrupted run saves what it has: all layers on
            for layer in layers:
                layer.enable_adapters(False)
        yield
    finally:
        with held():
            for layer in layers:
                layer.enable_adapters(True)


def adapter_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The adapter's weights, for a checkpoint."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float32, in the CPU's memory, with the adapter folded into plain weights: same class, same weight
    names as the AR model."""
    return folded(widened(model))


def folded(plain: PreTrainedModel) -> PreTrainedModel:
    """The model itself, its adapter folded in."""
    for layer in _adapted(plain):
        layer.merge()
    for name, layer in [(n, m) for n, m in plain.named_modules() if hasattr(m, "base_layer")]:
        parent, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(parent), leaf, layer.base_layer)
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain


def _adapted(model: PreTrainedModel) -> list:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
