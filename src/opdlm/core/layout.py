"""Who sees whom: block geometry from position ids, one predicate for training, prefill, decoding and evaluation.

Shape letters: B rows, Q queries, K keys. A token is described by its position id and its stream: 0 is the clean
stream (finished text), 1, 2, ... are noised streams of single blocks, -1 is padding or an empty cache slot. The mask of
block diffusion (BD3-LM, arXiv 2503.09573, figure 3: M_BD, M_OBC, M_BC) follows from these two numbers, among the tokens
of one document:

    clean  -> clean    block(k) <= block(q), or k <= q with a causal context    (M_BC)
    noised -> clean    block(k) <  block(q)                                     (M_OBC)
    noised -> noised   same stream and same block                                 (M_BD)
    clean  -> noised   never
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from opdlm.core.types import Geometry

CLEAN, PADDING = 0, -1
AUTOREGRESSIVE = Geometry(block_size=1, prediction="shifted", context="causal")
"""With blocks of one token, predicted by the token before, the diffusion sampler is the AR model's own decoding."""


@dataclass(frozen=True)
class Attention:
    """The visibility of keys for queries in one forward pass.

    Attributes:
        geometry: block size and context.
        query_position, query_stream: [B, Q] int64.
        key_position, key_stream: [B, K] int64.
        query_document, key_document: [B, Q] and [B, K] int64 where documents share a sequence: they never see each
            other. None: one document a row.
        query_column: [B, Q] int64, the column of the cache that each query writes. None: its position id.
    """

    geometry: Geometry
    query_position: torch.Tensor
    query_stream: torch.Tensor
    key_position: torch.Tensor
    key_stream: torch.Tensor
    query_document: torch.Tensor | None = None
    key_document: torch.Tensor | None = None
    query_column: torch.Tensor | None = None

    @classmethod
    def within(
        cls, geometry: Geometry, position: torch.Tensor, stream: torch.Tensor, document: torch.Tensor | None = None
    ) -> "Attention":
        """Self-attention without a cache: the keys are the queries."""
        return cls(geometry, position, stream, position, stream, document, document)

    def dense(self, window: int | None = None) -> torch.Tensor:
        """[B, Q, K] bool, True where the query sees the key.

        `window`: sliding-window layers see only keys with q - k < window, as in transformers.
        A padding query sees itself alone, so that no softmax runs over nothing.
        """
        return self._visible((slice(None), slice(None), None), (slice(None), None), window)

    def flex(self, window: int | None = None) -> BlockMask:
        """The same predicate as a FlexAttention block mask; nothing of size Q x K is kept."""
        rows, queries = self.query_position.shape

        def predicate(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return self._visible((b, q), (b, k), window)

        keys = self.key_position.shape[1]
        return create_block_mask(predicate, rows, None, queries, keys, device=str(self.query_position.device))

    def _visible(self, q: tuple[Any, ...], k: tuple[Any, ...], window: int | None) -> torch.Tensor:
        """Whether the queries `query_position[q]` see the keys `key_position[k]`."""
        q_pos, q_stream = self.query_position[q], self.query_stream[q]
        k_pos, k_stream = self.key_position[k], self.key_stream[k]
        q_block, k_block = q_pos // self.geometry.block_size, k_pos // self.geometry.block_size
        earlier = (k_pos <= q_pos) if self.geometry.context == "causal" else (k_block <= q_block)
        from_clean = (q_stream == CLEAN) & earlier
        from_noised = (q_stream > CLEAN) & (k_block < q_block)
        to_clean = (k_stream == CLEAN) & (from_clean | from_noised)
        to_noised = (k_stream > CLEAN) & (k_stream == q_stream) & (k_block == q_block)
        visible = to_clean | to_noised
        if window is not None:
            visible = visible & (q_pos - k_pos < window)
        visible = visible | ((q_stream == PADDING) & (k_stream == PADDING) & (q_pos == k_pos))
        if self.query_document is not None and self.key_document is not None:
            visible = visible & (self.query_document[q] == self.key_document[k])
        return visible


@dataclass(frozen=True)
class WindowAttention(Attention):
    """Windows of tokens to be drafted behind anchors in clean text, which need not lie on block borders.

        clean  -> clean     k <= q
        window -> clean     k < anchor(q)
        window -> window    same stream (every window has its own), and k <= q where windows are causal
        clean  -> window    never

    Attributes:
        query_anchor: [B, Q] int64, position of the first token of the window; unused for clean tokens.
        causal_inside: whether a window's tokens see only those before them, or each other.
        windows: how many tokens at the end of each row belong to windows; size: of each of them.
    """

    query_anchor: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    causal_inside: bool = False
    windows: int = 0
    size: int = 0

    def _visible(self, q: tuple[Any, ...], k: tuple[Any, ...], window: int | None) -> torch.Tensor:
        q_pos, q_stream, anchor = self.query_position[q], self.query_stream[q], self.query_anchor[q]
        k_pos, k_stream = self.key_position[k], self.key_stream[k]
        before = torch.where(q_stream == CLEAN, k_pos <= q_pos, k_pos < anchor)
        to_clean = (k_stream == CLEAN) & (q_stream >= CLEAN) & before
        to_window = (k_stream > CLEAN) & (k_stream == q_stream)
        if self.causal_inside:
            to_window = to_window & (k_pos <= q_pos)
        visible = to_clean | to_window
        if window is not None:
            visible = visible & (q_pos - k_pos < window)
        return visible | ((q_stream == PADDING) & (k_stream == PADDING) & (q_pos == k_pos))


def causal(position: torch.Tensor, valid: torch.Tensor, document: torch.Tensor | None = None) -> Attention:
    """The AR model's own attention over clean tokens: blocks of one token. `position`, `valid`, `document`: [B, T]."""
    stream = torch.where(valid, CLEAN, PADDING)
    return Attention.within(AUTOREGRESSIVE, position, stream, document)


def block_start(position: torch.Tensor, block_size: int) -> torch.Tensor:
    """First position id of the block that holds `position`."""
    return position // block_size * block_size
