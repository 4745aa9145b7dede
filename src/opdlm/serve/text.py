"""The text of a response while it grows: what of it can be sent already."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from opdlm.models.tool_calls import ToolCall

_NO_CHARACTER = "\ufffd"
"""What a tokenizer decodes part of a character to."""


class GrowingText:
    """Turns more and more ids into more and more text. Neither half a character nor what may begin a stop string is
    handed out, and nothing from a stop string on.

    The pieces together are the text that all ids decode to. A few tokens before the new ones are decoded again with
    them, since some tokenizers write a token in another way at the beginning of a text.
    """

    calls: tuple[ToolCall, ...] = ()
    """What was called, where tools may be."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._before = self._read = 0  # tokens: where the window begins, and how many are decoded
        self._held = ""  # decoded, and may begin a stop string
        self._stopped = False

    def more(self, ids: Sequence[int], last: bool = False) -> str:
        """The text that `ids`, all of the response so far, add to what was handed out; `last`: nothing follows."""
        if self._stopped:
            return ""
        known = self._decode(ids[self._before : self._read])
        window = self._decode(ids[self._before :])
        if len(window) > len(known) and (last or not window.endswith(_NO_CHARACTER)):
            self._held += window[len(known) :]
            self._before, self._read = self._read, len(ids)
        ends = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if ends:
            self._stopped = True
            return self._held[: min(ends)]
        kept = 0 if last else max((overlap(self._held, stop) for stop in self._stops), default=0)
        text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
