"""An AR model that drafts: its own weights, and a gate that makes drafts of what follows in a window of tokens."""

import torch
from transformers import PreTrainedModel

from opdlm.core.layout import AUTOREGRESSIVE, Attention, WindowAttention
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.cache import FrozenPrefix, KVCache
from opdlm.models.gate import Gate
from opdlm.models.pace import Pace


class DraftingModel(BlockDiffusionModel):
    """A decoder under its own causal mask. Under a `WindowAttention` the last tokens of each row go through the gate.

    Attributes:
        gate: the adapter; the decoder's own weights are frozen. turn: held for a pass, too.
    """

    def __init__(self, model: PreTrainedModel, gate: Gate) -> None:
        """`gate`: made for this very `model`."""
        super().__init__(model, AUTOREGRESSIVE, NO_MASK)
        self.gate, self.pace = gate, Pace(gate.window)

    @property
    def window(self) -> int:
        """k, the most drafts of a forward."""
        return self.gate.window

    def hidden(
        self, input_ids: torch.Tensor, attention: Attention, cache: KVCache | FrozenPrefix | None = None
    ) -> torch.Tensor:
        """As in BlockDiffusionModel; window tokens, the last `attention.windows` of each row, go through the gate."""
        inside = isinstance(attention, WindowAttention)
        with self.turn:
            self.gate.width, self.gate.size = (attention.windows, attention.size) if inside else (0, 0)
            return super().hidden(input_ids, attention, cache)

    def causal_hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        with self.turn:
            self.gate.width = 0
            return super().causal_hidden(input_ids)

    def compile_decoding(self) -> None:
        """As in BlockDiffusionModel, with other windows for `verified:auto` to choose from."""
        super().compile_decoding()
        self.pace.sizes = (3,)

    def train(self, mode: bool = True) -> "DraftingModel":
        """Eval mode: windows are computed behind cached text, where no activation can be recomputed."""
        super().train(False)
        return self

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """Raises UsageError: see `train`."""
        raise UsageError("lossless conversion cannot recompute activations; lower rows_per_micro_batch instead")
