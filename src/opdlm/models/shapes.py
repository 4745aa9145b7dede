"""Decoders by their shapes alone: named ones, whose config.json nobody has to download, and what a config comes to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen3Config

from opdlm.models.parts import input_embedding, linear_layers, lm_head

_QWEN3 = {"vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40_960}
_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "qwen3-8b": {"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
"""The models' own config.json (huggingface.co/Qwen). Only the largest has an LM head of its own."""
NAMED_SHAPES = tuple(_SHAPES)


def named_shape(name: str) -> PreTrainedConfig | None:
    """The config of one of NAMED_SHAPES; None for another name."""
    if name not in _SHAPES:
        return None
    config = Qwen3Config(**_QWEN3, **_SHAPES[name], tie_word_embeddings=name != "qwen3-8b", dtype="bfloat16")
    config.name_or_path = name
    return config


def without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of fake tensors, which have shapes and no memory: what a pass would keep for its backward pass can be
    counted (`distill/footprint.py`). Its config keeps the type that the weights were published in.
    """
    published = config.dtype
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.config.dtype = published
    return model


@dataclass(frozen=True)
class Decoder:
    """What a decoder's cost depends on, in numbers.

    Attributes:
        parameters: all, tied ones once. body: weights of the linear layers but the LM head, which each token meets.
        head: weights of the LM head, which supervised positions meet. embedding: of the input embedding.
        layers: decoder layers. width: heads x head size. cached: numbers in the keys and values of one token.
    """

    parameters: int
    body: int
    head: int
    embedding: int
    layers: int
    width: int
    cached: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Decoder":
        """Of a model, which may be without weights."""
        config: Any = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            body=sum(layer.get_parameter("weight").numel() for layer in linear_layers(model).values()),
            head=lm_head(model).get_parameter("weight").numel(),
            embedding=input_embedding(model).weight.numel(),
            layers=config.num_hidden_layers,
            width=size * config.num_attention_heads,
            cached=2 * config.num_hidden_layers * heads * size,
        )

    def forward_flops(self, tokens: float, pairs: float, positions: float = 0) -> float:
        """Of a forward pass, two for each multiplication: linear layers over `tokens`, attention over `pairs` of a
        query and a key in every layer (4 x width each), the LM head at `positions`. Norms and the like are left out.
        """
        return 2.0 * self.body * tokens + 4.0 * self.layers * self.width * pairs + 2.0 * self.head * positions
