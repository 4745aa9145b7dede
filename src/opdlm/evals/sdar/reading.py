"""An SDAR folder as the engines read it, in plain torch: config.json and safetensors, nothing of opdlm or transformers.

Shape letters: T positions, S block size, D hidden size, H heads, G key/value heads, E head size, V vocabulary.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, scaled_dot_product_attention, silu


class SdarReading:
    """A decoder in float32, without a cache.

    Attributes:
        config: config.json. weights: name -> tensor.
    """

    def __init__(self, folder: str | Path) -> None:
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.weights: dict[str, torch.Tensor] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            self.weights |= {name: value.float() for name, value in load_file(file).items()}

    @torch.no_grad()
    def __call__(self, ids: list[int]) -> torch.Tensor:
        """[S, V] logits of the last block; every position sees its own block and those before it."""
        size = self.config["block_size"]
        block = torch.arange(len(ids)) // size
        visible = block[:, None] >= block[None]
        turns = self._turns(len(ids))
        hidden = self.weights["model.embed_tokens.weight"][torch.tensor(ids)]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            hidden = hidden + self._attention(name, self._norm(f"{name}.input_layernorm", hidden), visible, turns)
            inner = self._norm(f"{name}.post_attention_layernorm", hidden)
            gated = silu(self._linear(f"{name}.mlp.gate_proj", inner)) * self._linear(f"{name}.mlp.up_proj", inner)
            hidden = hidden + self._linear(f"{name}.mlp.down_proj", gated)
        return self._linear("lm_head", self._norm("model.norm", hidden[-size:]))

    def _attention(
        self, name: str, hidden: torch.Tensor, visible: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        head = self.config["head_dim"]
        q, k, v = (self._linear(f"{name}.self_attn.{x}_proj", hidden).unflatten(-1, (-1, head)) for x in "qkv")
        q = _turned(self._norm(f"{name}.self_attn.q_norm", q), *turns)
        k = _turned(self._norm(f"{name}.self_attn.k_norm", k), *turns)
        q, k, v = (one.transpose(0, 1)[None] for one in (q, k, v))  # [1, H or G, T, E]
        mixed = scaled_dot_product_attention(q, k, v, visible[None, None], enable_gqa=True)
        return self._linear(f"{name}.self_attn.o_proj", mixed[0].transpose(0, 1).flatten(1))

    def _linear(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return linear(values, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, values: torch.Tensor) -> torch.Tensor:
        scale = (values.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return values * scale * self.weights[f"{name}.weight"]

    def _turns(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotary angles, [T, 1, E / 2] each."""
        half = torch.arange(0, self.config["head_dim"], 2, dtype=torch.int64).float() / self.config["head_dim"]
        angles = torch.arange(length).float()[:, None] / self.config["rope_theta"] ** half
        return angles.cos()[:, None], angles.sin()[:, None]


def _turned(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[T, H, E] with the pairs (i, i + E / 2) turned by their angles."""
    first, second = values.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
