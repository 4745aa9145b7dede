"""The gate of lossless decoding: an adapter that acts at the window's tokens only, and what stands at these.

LoRA: arXiv 2106.09685; gated, with mask tokens: arXiv 2507.11851. The window's tokens are always the last ones of a
pass. All others go through the original weights, whose bytes never change: their outputs are the AR model's own.

Shape letters: B rows, Q queries, D hidden size, k tokens of a window.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from opdlm.models.parts import input_embedding, linear_layers

GATE_FILE = "gate.safetensors"
Form = Literal["mask", "noise"]


class LowRank(nn.Module):
    """One layer's LoRA: `down` [rank, inputs] and `up` [rank, outputs], its matrices A and transposed B."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(rank, outputs))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as peft does: the adapter starts as no change


class Gate(nn.Module):
    """LoRA on every linear layer of a decoder but its LM head, by forward hooks: its modules stay as they are.

    Attributes:
        width: how many tokens at the end of each row of the next pass are window tokens; set before each pass.
        size: of each of these windows, at most `window`.
        form: "mask": learnt embeddings stand at the window's places, which see each other. "noise": random ids of the
            vocabulary, each of which sees those before it.
        window: k, the tokens of a window: the most drafts of a forward.
        places: [k, D] the mask embeddings, one for each place; none with "noise".
        names: of the adapted layers.
    """

    def __init__(self, model: PreTrainedModel, rank: int, form: Form, window: int) -> None:
        """The identity, hooked into `model`, whose weights stop training."""
        super().__init__()
        model.requires_grad_(False)
        self.rank, self.alpha, self.form, self.window, self.width = rank, 2 * rank, form, window, 0
        self.size = window
        layers = linear_layers(model)
        self.names: Sequence[str] = list(layers)
        self.layers = nn.ModuleList(LowRank(*_shape(layer), rank) for layer in layers.values())
        embedding = input_embedding(model)
        self.places: nn.Parameter | None = None
        if form == "mask":
            mean = embedding.weight.detach().float().mean(0)
            self.places = nn.Parameter(mean.repeat(window, 1))
            embedding.register_forward_hook(self._put_places)
        for layer, adapter in zip(layers.values(), self.layers, strict=True):
            layer.register_forward_hook(self._adding(adapter))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file of the gate holds: `LAYER.lora_A`, `LAYER.lora_B`, and `places` where there are any."""
        found = {} if self.places is None else {"places": self.places}
        for name, layer in zip(self.names, self.layers, strict=True):
            found |= {f"{name}.lora_A": layer.get_parameter("down"), f"{name}.lora_B": layer.get_parameter("up").T}
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The gate of `tensors`. Raises ValueError if they belong to another model, rank, form or window."""
        mine = self.tensors()
        wrong = [name for name, value in mine.items() if name not in tensors or tensors[name].shape != value.shape]
        if wrong:
            raise ValueError(f"the gate's {wrong[0]} is missing or of another size")
        if unknown := sorted(tensors.keys() - mine.keys()):
            raise ValueError(f"the gate's {unknown[0]} belongs to no layer")
        with torch.no_grad():
            if self.places is not None:
                self.places.copy_(tensors["places"])
            for name, layer in zip(self.names, self.layers, strict=True):
                layer.get_parameter("down").copy_(tensors[f"{name}.lora_A"])
                layer.get_parameter("up").copy_(tensors[f"{name}.lora_B"].T)

    def _adding(self, adapter: nn.Module) -> Callable[..., torch.Tensor | None]:
        assert isinstance(adapter, LowRank)
        scale = self.alpha / self.rank

        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            width = self.width
            if not width:
                return None
            down, up, rows, everything = adapter.down, adapter.up, len(output), width == output.shape[1]
            single = rows == 1 and not everything  # as matrices: a quarter faster than a batch of one
            at = (0 if single else slice(None), slice(-width, None))
            low, gated = linear(inputs[0][at].to(down.dtype), down), output[at]
            if up.dtype != output.dtype:  # autocast, which leaves in-place products alone; or a gate in float32
                gated.add_(low @ up, alpha=scale)
            elif everything:
                return torch.baddbmm(output, low, up.expand(rows, -1, -1), alpha=scale)
            elif single:  # in place, as below: no layer needs its own output again
                gated.addmm_(low, up, alpha=scale)
            else:
                gated.baddbmm_(low, up.expand(rows, -1, -1), alpha=scale)
            return output

        return add

    def _put_places(
        self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        if not self.width:
            return None
        assert self.places is not None
        windows = self.width // self.size
        stand = self.places[: self.size].repeat(windows, 1).to(output.dtype).expand(len(output), -1, -1)
        return torch.cat([output[:, : -self.width], stand], 1)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2's `Conv1D` keeps its matrix the other way round."""
    rows, columns = layer.get_parameter("weight").shape
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)
