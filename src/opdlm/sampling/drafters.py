"""What drafts in verified decoding: the windows of a forward, and what is read off them.

Shape letters: B slots, A anchors, w tokens of a window, n drafts, S block size, D hidden size.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from opdlm.core.layout import Attention, WindowAttention, block_start
from opdlm.core.windows import noise
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.models.pace import WindowShape
from opdlm.sampling.request import Request
from opdlm.sampling.rules import drafts
from opdlm.sampling.slots import Slots


class Drafter(Protocol):
    """Attributes:
    margin: columns of the cache that the windows of a forward need behind the text.
    """

    margin: int

    def shape(self, requests: Sequence[Request]) -> WindowShape:
        """The windows of the next forward."""
        ...

    def windows(self, anchor: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 ids and positions [B, A, w] of windows of `size` drafts behind the text before each `anchor` [B, A]."""
        ...

    def attention(self, plain: Attention, anchor: torch.Tensor, size: int) -> Attention:
        """Who sees whom; `plain`: text and windows. `anchor`: [B, A]."""
        ...

    def predicting(self, hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """[B, n, D]: of a window's hidden states [B, w, D], those that draft the tokens at `position` [B, n]."""
        ...

    def room(self, position: torch.Tensor) -> torch.Tensor:
        """[B] int64: most drafts from `position` [B] on, the token before which the AR model has just written."""
        ...

    def saw(self, tokens: int | None, seconds: float, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Told of each forward; as `Pace.saw`."""
        ...


class GateDrafter:
    """Drafts of a lossless model: windows that go through its gate."""

    def __init__(self, slots: Slots) -> None:
        assert isinstance(slots.model, DraftingModel)
        self.slots, self.model, self.gate = slots, slots.model, slots.model.gate
        self.vocabulary = slots.vocabulary if self.gate.form == "noise" else 0
        self.margin = (self.model.window + 1) ** 2

    def shape(self, requests: Sequence[Request]) -> WindowShape:
        """As the requests want them, or as they are fastest."""
        wanted = [request.decoding for request in requests]
        if any(one["kind"] == "typical" for one in wanted):
            return WindowShape(self.model.window, True)  # its text depends on its drafts: always the same ones
        most = min(self.model.window, max(map(drafts, wanted)))
        if any(one.get("auto") for one in wanted):
            return paced(self.model, len(wanted), most)
        return WindowShape(most, any(one.get("every") for one in wanted))

    def windows(self, anchor: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the gate puts at a window's places, or random ids."""
        place = self.slots.columns[:size].expand(*anchor.shape, -1)
        seed, anchor = self.slots.state.seed[:, None, None], anchor[..., None].expand_as(place)
        return noise(seed, anchor, place, self.vocabulary), anchor + place

    def attention(self, plain: Attention, anchor: torch.Tensor, size: int) -> Attention:
        """Every window by itself, behind the text before its anchor."""
        anchors = anchor[..., None].expand(-1, -1, size).flatten(1)
        queries, windows = plain.query_position.shape[1], anchors.shape[1]
        return WindowAttention(
            **vars(plain),
            query_anchor=torch.cat([plain.query_position[:, : queries - windows], anchors], 1),
            causal_inside=self.gate.form == "noise",
            windows=windows,
            size=size,
        )

    def predicting(self, hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Each token of a window drafts the one behind it."""
        return hidden

    def room(self, position: torch.Tensor) -> torch.Tensor:
        """A window begins anywhere."""
        return torch.full_like(position, self.model.window)

    def saw(self, tokens: int | None, seconds: float, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """For `auto`."""
        told(self.model, tokens, seconds, drafted, accepted)


class NoDrafter:
    """An AR model as it is: one token a forward."""

    margin = 0

    def shape(self, requests: Sequence[Request]) -> WindowShape:
        """No windows."""
        return WindowShape(0, False)

    def windows(self, anchor: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Empty ones."""
        none = anchor[..., None][..., :0]
        return none, none

    def attention(self, plain: Attention, anchor: torch.Tensor, size: int) -> Attention:
        """That of the text."""
        return plain

    def predicting(self, hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Nothing."""
        return hidden

    def room(self, position: torch.Tensor) -> torch.Tensor:
        """None."""
        return torch.zeros_like(position)

    def saw(self, tokens: int | None, seconds: float, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Nothing depends on it."""


class MaskDrafter:
    """Drafts of a student with masks, in the geometry that it was trained in: the rest of the anchor's block.

    A window is that block as the student would denoise it: what is known of it, then masks. With shifted prediction
    each of its tokens but the last drafts the one behind it.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.size = slots.model.geometry.block_size
        self.margin = self.size * (self.size + 1)

    def shape(self, requests: Sequence[Request]) -> WindowShape:
        """As the requests want them, or as they are fastest."""
        wanted = [request.decoding for request in requests]
        most = min(self.size - 1, max(map(drafts, wanted)))
        if any(one.get("auto") for one in wanted):
            return paced(self.slots.model, len(wanted), most)
        return WindowShape(most, True)

    def windows(self, anchor: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The block of each anchor; none where there are no drafts."""
        place = self.slots.columns[: self.size if size else 0]
        position = block_start(anchor, self.size)[..., None] + place
        state = self.slots.state
        ids = state.ids.gather(1, position.flatten(1)).view_as(position)
        return torch.where(position < anchor[..., None], ids, self.slots.mask_token_id), position

    def attention(self, plain: Attention, anchor: torch.Tensor, size: int) -> Attention:
        """That of training: a block in a stream of its own sees itself and the blocks before."""
        return plain

    def predicting(self, hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The token of the block that stands one to the left."""
        index = (position - 1) % self.size
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))

    def room(self, position: torch.Tensor) -> torch.Tensor:
        """Up to the end of the block: no mask predicts a token of another one."""
        return -position % self.size

    def saw(self, tokens: int | None, seconds: float, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """For `auto`."""
        told(self.slots.model, tokens, seconds, drafted, accepted)


def paced(model: BlockDiffusionModel, rows: int, most: int) -> WindowShape:
    """The windows of at most `most` drafts that are fastest for so many rows."""
    with model.turn:
        return model.pace.choose(rows, most)


def told(
    model: BlockDiffusionModel, tokens: int | None, seconds: float, drafted: Sequence[int], accepted: Sequence[int]
) -> None:
    """Tells the model's pace of a forward."""
    with model.turn:
        model.pace.saw(tokens, seconds, drafted, accepted)


def drafter_of(slots: Slots) -> Drafter:
    """What drafts for the model in these slots."""
    if isinstance(slots.model, DraftingModel):
        return GateDrafter(slots)
    return NoDrafter() if slots.model.mask_token_id == NO_MASK else MaskDrafter(slots)
