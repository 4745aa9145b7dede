"""Token ids as users give them: rows in a tensor or in lists, padded or not."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch

from opdlm.errors import UsageError


def token_rows(
    input_ids: torch.Tensor | Sequence[Sequence[int]], mask: torch.Tensor | Sequence[Sequence[int]] | None
) -> list[list[int]]:
    """Each row without its padding. UsageError for anything else, and for a row without tokens.

    Args:
        mask: 1 for each token, 0 for padding; None: nothing is padding.
    """
    rows = _as_lists(input_ids, "input_ids need two dimensions, rows of token ids; wrap a single row in a list")
    if not all(isinstance(token, Integral) for row in rows for token in row):
        raise UsageError("input_ids holds token ids alone, in rows; for a text use `write`, or the tokenizer first")
    if mask is not None:
        kept = _as_lists(mask, "attention_mask needs two dimensions, rows of 0 and 1, as input_ids has")
        rows = _without_padding(rows, kept)
    if not rows or not all(rows):
        raise UsageError("every prompt needs at least one token; add a text or a beginning-of-sequence token")
    return rows


def only_length(rows: Sequence[Sequence[int]]) -> int:
    """Length of the single row that can be watched."""
    if len(rows) != 1:
        raise UsageError("only one row can be watched; give one prompt, or leave the streamer out")
    return len(rows[0])


def _as_lists(values: Any, fault: str) -> list[list[Any]]:
    plain = values.tolist() if isinstance(values, torch.Tensor) else values
    if not isinstance(plain, Iterable):
        raise UsageError(fault)
    rows = [row.tolist() if isinstance(row, torch.Tensor) else row for row in plain]
    if not all(isinstance(row, Sequence) for row in rows):
        raise UsageError(fault)
    return [list(row) for row in rows]


def _without_padding(rows: list[list[int]], kept: list[list[Any]]) -> list[list[int]]:
    if [len(row) for row in kept] != [len(row) for row in rows]:
        raise UsageError("attention_mask has not the shape of input_ids; give a 0 or a 1 for each token of each row")
    if not all(keep in (0, 1) for row in kept for keep in row):
        raise UsageError("attention_mask holds something else than 0 and 1; give a 1 for each token, a 0 for padding")
    pairs = zip(rows, kept, strict=True)
    return [[token for token, keep in zip(row, keeps, strict=True) if keep] for row, keeps in pairs]
