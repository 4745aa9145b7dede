"""The parts of a decoder that we hold on to: its two ends, with their types, and the argument that takes the cache."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from opdlm.errors import ConfigError


def input_embedding(model: PreTrainedModel) -> nn.Embedding:
    """The token embedding; its rows may be more than the tokenizer has tokens."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding


def lm_head(model: PreTrainedModel) -> nn.Module:
    """The module that turns final hidden states into raw logits."""
    head = model.get_output_embeddings()
    assert head is not None
    return head


def check_rank(rank: int, layers: Iterable[nn.Module]) -> None:
    """Raises ConfigError if a layer has fewer rows or columns than the rank of an adapter."""
    most = min(min(layer.get_parameter("weight").shape) for layer in layers)
    if rank > most:
        raise ConfigError(f"setting lora_rank: {rank} is above the rank of the smallest layer; give at most {most}")


def cache_argument(forward: Callable[..., Any]) -> str | None:
    """The name of the argument of `forward` that takes the KV cache, or None.

    transformers 5.24 calls it `cache`; before that it was `past_key_values`, a name that 5.40 will no longer take.
    """
    known = inspect.signature(forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in known), None)
