"""Stop strings: which token of a block completes one. The matching itself is transformers' `StopStringCriteria`."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase, StopStringCriteria

from opdlm.errors import UsageError
from opdlm.models.tokens import check_text

_NO_TOKEN = 2**31 - 1  # matches no part of any string: StopStringCriteria takes ids behind the vocabulary for that


class StopStrings:
    """Finds the tokens with which a stop string is complete, wherever token borders fall."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, strings: Sequence[str]):
        """UsageError if a string is empty, the tokenizer cannot write it, or there is none."""
        if tokenizer is None:
            raise UsageError("stop strings need the tokenizer; give it along with them")
        if not all(strings):
            raise UsageError("setting stop_strings: a stop string is empty; leave it out")
        for string in strings:
            check_text(string)
        try:
            self._criteria = StopStringCriteria(tokenizer, list(strings))
        except ValueError as error:
            raise UsageError(
                f"setting stop_strings: no token of this model ends with one ({error}); choose another"
            ) from error

    def completed(self, ids: torch.Tensor, position: torch.Tensor, begin: torch.Tensor) -> torch.Tensor:
        """[B, S] bool: whether the text that ends with the token at `position` [B, S] ends with a stop string.

        Args:
            ids: [B, T] int64, column = position id.
            begin: [B] int64; a match must lie at or behind this position: the prompt's own text is none.
        """
        reach = torch.arange(1 - self._criteria.maximum_token_len, 1, device=ids.device)
        window = position[..., None] + reach
        tokens = ids[:, None].expand(-1, position.shape[1], -1).gather(-1, window.clamp(min=0))
        tokens = tokens.masked_fill(window < begin[:, None, None], _NO_TOKEN)
        return self._criteria(tokens.flatten(0, 1), None).bool().view(position.shape)  # type: ignore[arg-type]
