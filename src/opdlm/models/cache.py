"""The KV cache of block diffusion: preallocated, written by column, read up to the longest row.

Shape letters: B rows, Q queries, K keys, H key/value heads, T columns, D head size.

Column = position id. What a column means is said by the mask alone (`Attention.key_stream`), never by the cache: a
finished block, a block that is still being denoised and the rest of an earlier text look alike here. So rolling a row
back, filling a slot with another prompt or overwriting a block in its next step needs no work: the caller marks the
columns as empty, or lets the next forward write over them.
"""

from typing import Any

import torch
from transformers import Cache


class _Layer:
    """Keys and values of one layer, each [B, H, T + 1, D]; the last column takes what nobody reads."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys, self.values = keys, values


class KVCache(Cache):
    """One preallocated buffer a layer, allocated at the first forward from what the layer writes.

    Only for passes without gradients: the buffers are written in place.
    """

    def __init__(self, rows: int, length: int):
        """A cache for `rows` rows and the position ids 0 to `length` - 1."""
        super().__init__(layers=[])
        self.rows, self.length = rows, length
        self._layers: dict[int, _Layer] = {}
        self._slots: torch.Tensor | None = None
        self._columns: torch.Tensor | None = None
        self._visible = 0

    def prepare(self, position: torch.Tensor, valid: torch.Tensor, visible: int) -> None:
        """Says where the next forward writes and how far it reads: `BlockDiffusionModel.hidden` calls it.

        Args:
            position: [B, Q] int64, position ids of the queries.
            valid: [B, Q] bool; the others are padding, whose keys and values are thrown away.
            visible: K, the columns that attention runs over.
        """
        if visible > self.length:
            raise ValueError(f"the cache has {self.length} columns, the mask has {visible}; call resize() first")
        self._columns = torch.where(valid, position, self.length)
        self._visible = visible

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes [B, H, Q, D] keys and values at the prepared columns; returns all of them, [B, H, K, D].

        Called by the attention layers of transformers.
        """
        if key_states.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("KVCache works without gradients only; call the model under torch.no_grad()")
        if self._columns is None:
            raise RuntimeError("KVCache.prepare was not called before the forward pass")
        layer = self._layers.get(layer_idx)
        if layer is None:
            layer = self._layers[layer_idx] = _Layer(self._allocate(key_states), self._allocate(value_states))
        return self._written(layer.keys, key_states), self._written(layer.values, value_states)

    def at(self, slots: torch.Tensor) -> "KVCache":
        """A view for a forward pass over the rows `slots` [b] alone, such as a prefill; it writes into this cache."""
        view = KVCache(self.rows, self.length)
        view._layers, view._slots = self._layers, slots
        return view

    def keep(self, rows: torch.Tensor) -> None:
        """Keeps the rows `rows` [b], in that order."""
        for layer in self._layers.values():
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.rows = int(rows.shape[0])

    def spread(self, row: int, columns: int) -> None:
        """Copies the first `columns` columns of `row` to every row: a prefix that all texts share."""
        for layer in self._layers.values():
            layer.keys[:, :, :columns] = layer.keys[row : row + 1, :, :columns].clone()
            layer.values[:, :, :columns] = layer.values[row : row + 1, :, :columns].clone()

    def resize(self, rows: int, length: int) -> None:
        """Makes room for `rows` rows and the position ids 0 to `length` - 1; never shrinks.

        Where memory runs out half-way, everything is as it was before.
        """
        rows, length = max(rows, self.rows), max(length, self.length)
        if (rows, length) == (self.rows, self.length):
            return
        done = False
        try:
            # One layer after the other: all old and all new buffers at once would take twice the memory.
            for layer in self._layers.values():
                larger = self._larger(layer.keys, rows, length), self._larger(layer.values, rows, length)
                layer.keys, layer.values = larger
            done = True
        finally:
            if done:
                self.rows, self.length = rows, length
            else:  # views take no memory
                for layer in self._layers.values():
                    layer.keys, layer.values = self._cut(layer.keys), self._cut(layer.values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: transformers would count from it, but positions and masks are always given."""
        return 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """T, the columns there are."""
        return self.length

    def __len__(self) -> int:
        """Layers written so far."""
        return len(self._layers)

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        # Zeros, because a hidden column is multiplied by a probability of 0, and 0 * NaN is NaN.
        _, heads, _, width = states.shape
        return states.new_zeros(self.rows, heads, self.length + 1, width)

    def _larger(self, buffer: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        larger = buffer.new_zeros(rows, buffer.shape[1], length + 1, buffer.shape[3])
        larger[: self.rows, :, : self.length] = buffer[:, :, : self.length]
        return larger

    def _cut(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[: self.rows, :, : self.length + 1]

    def _written(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Puts `states` [B, H, Q, D] into their columns of `buffer`; returns the visible columns of their rows."""
        assert self._columns is not None
        if self._slots is None:
            buffer.scatter_(2, self._columns[:, None, :, None].expand_as(states), states)
            return buffer[:, :, : self._visible]
        buffer[self._slots[:, None], :, self._columns] = states.transpose(1, 2)
        return buffer[self._slots, :, : self._visible]


class FrozenPrefix(Cache):
    """Keys and values of clean texts: one pass writes them, later passes with gradients see them in front of their own.

    Queries of later passes are not added: each pass stands alone behind the same texts.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._written = False

    def prepare(self, position: torch.Tensor, valid: torch.Tensor, visible: int) -> None:
        """Nothing to prepare; `BlockDiffusionModel.hidden` calls it before a pass."""

    def seal(self) -> None:
        """The texts are written; from now on passes read them."""
        self._written = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps [B, H, T, D] keys and values of the texts; returns those of a later pass behind them."""
        if not self._written:
            self._layers[layer_idx] = (key_states, value_states)
            return key_states, value_states
        keys, values = self._layers[layer_idx]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: transformers would count from it, but positions and masks are always given."""
        return 0
