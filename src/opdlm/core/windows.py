"""From a text to the windows that a drafting model is trained on: where they begin, and what stands in them.

Shape letters: B rows, T columns, N windows of a row, k tokens of a window, Q = N k window tokens, M supervised ones.
A window is anchored at the position of its first token, n: it sees the clean text before n, and its token at n + j
predicts token n + 1 + j. In decoding it begins right behind the verified text, so that the AR model itself says what
token n is.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from opdlm.core.layout import AUTOREGRESSIVE, PADDING, WindowAttention
from opdlm.core.noise import uniform
from opdlm.core.types import Rollout, StateBatch

Anchors = Literal["visited", "random", "all"]
_NOISE = 3  # keeps these draws apart from all others of a row


@dataclass(frozen=True)
class WindowChoice:
    """Which windows are trained on.

    Attributes:
        size: k. anchors: "visited": where decoding began a forward. "random": as many, anywhere in the response. "all":
            every position of it.
        vocabulary: random ids below it stand at the window's places; 0: what the gate puts there.
        supervise_end: whether the stop token itself is in the loss.
    """

    size: int
    anchors: Anchors = "visited"
    vocabulary: int = 0
    supervise_end: bool = True


@dataclass(frozen=True)
class WindowBatch(StateBatch):
    """Windows of B texts, a row each; the clean text is not among them. Stream 1, 2, ...: one for each window.

    Attributes:
        anchor: [B, Q] int64, of each token's window.
    """

    anchor: torch.Tensor


def select_windows(rollout: Rollout, choice: WindowChoice, seed: torch.Tensor) -> WindowBatch:
    """Windows behind the chosen anchors of every row. `seed`: [B] int64; decides every random choice of the row."""
    anchors = _anchors(rollout, choice.anchors, seed)
    rows, count = len(seed), max(1, int(anchors.sum(-1).max()))  # texts of one token have no window: padding alone
    first = anchors.int().argsort(dim=-1, descending=True, stable=True)[:, :count]  # positions in order, others behind
    real = (torch.arange(count, device=seed.device) < anchors.sum(-1, keepdim=True))[..., None]
    place = torch.arange(choice.size, device=seed.device)
    position = (first[..., None] + place).view(rows, -1)
    stream = torch.where(real, torch.arange(1, count + 1, device=seed.device)[:, None], PADDING)
    stream = stream.expand(-1, -1, choice.size).reshape(rows, -1)
    anchor = first[..., None].expand(-1, -1, choice.size).reshape(rows, -1)
    last = rollout.length - (rollout.stopped & (not choice.supervise_end)).long()
    supervised = (stream != PADDING) & (position + 1 < last[:, None])
    row, predictor = supervised.nonzero(as_tuple=True)
    return WindowBatch(
        input_ids=noise(seed[:, None], anchor, position - anchor, choice.vocabulary),
        position_ids=position,
        stream=stream,
        document=torch.arange(rows, device=seed.device)[:, None].expand_as(stream),
        row=row,
        sequence=row,
        predictor=predictor,
        position=position[row, predictor] + 1,
        weight=torch.ones(row.shape, device=row.device),
        anchor=anchor,
    )


def noise(seed: torch.Tensor, anchor: torch.Tensor, place: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """int64 ids that stand in a window, uniform in [0, vocabulary); zeros for a vocabulary of 0."""
    if not vocabulary:
        return torch.zeros_like(anchor)
    chance = uniform(seed, anchor, place, seed.new_full((), _NOISE))
    return (chance * vocabulary).long()


def _anchors(rollout: Rollout, which: Anchors, seed: torch.Tensor) -> torch.Tensor:
    """[B, T] bool. The last token of a text anchors nothing: there is no token behind it to predict."""
    columns = torch.arange(rollout.input_ids.shape[1], device=seed.device)
    inside = (columns >= rollout.prompt_length[:, None]) & (columns < rollout.length[:, None] - 1)
    if which == "all":
        return inside
    steps = rollout.commit_step
    visited = inside & (steps != steps.roll(-1, 1))
    if which == "visited":
        return visited
    order = uniform(seed[:, None], columns, seed.new_full((), 1)).masked_fill(~inside, 2.0)
    return inside & (order.argsort(-1).argsort(-1) < visited.sum(-1, keepdim=True))


def windows_behind(
    windows: WindowBatch, text_position: torch.Tensor, text_stream: torch.Tensor, size: int, causal_inside: bool
) -> WindowAttention:
    """Windows of `size` tokens behind clean text, whose keys, `text_position` and `text_stream` [B, T], stand first."""
    return WindowAttention(
        AUTOREGRESSIVE,
        windows.position_ids,
        windows.stream,
        torch.cat([text_position, windows.position_ids], 1),
        torch.cat([text_stream, windows.stream], 1),
        query_anchor=windows.anchor,
        causal_inside=causal_inside,
        windows=windows.position_ids.shape[1],
        size=size,
    )
