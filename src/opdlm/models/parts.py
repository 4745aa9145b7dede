"""The parts of a decoder that we hold on to: its two ends, with their types, and the argument that takes the cache."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from opdlm.errors import UnsupportedModelError


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


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of a decoder but its LM head, by name: what an adapter changes.

    Raises UnsupportedModelError if there are none.
    """
    head, found = model.get_output_embeddings(), dict[str, nn.Module]()
    found |= {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no linear layers that an adapter could change; convert all weights"
        )
    return found


def cache_argument(forward: Callable[..., Any]) -> str | None:
    """The name of the argument of `forward` that takes the KV cache, or None.

    transformers 5.24 calls it `cache`; before that it was `past_key_values`, a name that 5.40 will no longer take.
    """
    known = inspect.signature(forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in known), None)
