"""Responses that call tools: what of their text can be sent already, and the calls as the OpenAI API has them."""

import json
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from opdlm.models.tool_calls import PYTHON_TAG, TAGS, ToolCall, parse_tool_calls
from opdlm.serve.text import GrowingText, overlap


class CallingText(GrowingText):
    """As GrowingText, without the calls. What may become one, and all behind it, waits for the end.

    Attributes:
        calls: once nothing follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], tools: Collection[str]) -> None:
        """`tools`: names of those that the request offers."""
        super().__init__(tokenizer, stops)
        self._tools, self._whole, self._sent = tools, "", 0
        added = tokenizer.added_tokens_decoder.items()
        self._hidden = {number for number, token in added if token.special and token.content not in TAGS}
        self.calls = ()

    def more(self, ids: Sequence[int], last: bool = False) -> str:
        self._whole += super().more(ids, last)
        ready = _before_calls(self._whole)
        if last:
            message = parse_tool_calls(self._whole, self._tools)
            ready, self.calls = message.content, message.calls
        text, self._sent = ready[self._sent :], len(ready)
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        """With the tags, which are special tokens in some models."""
        return str(self._tokenizer.decode([one for one in ids if one not in self._hidden]))


def _before_calls(text: str) -> str:
    """What no call can be part of, without the white space between the two."""
    begin = text.lstrip()
    if begin.startswith(("{", PYTHON_TAG)) or PYTHON_TAG.startswith(begin):
        return ""
    before = text.partition(TAGS[0])[0]
    return before[: len(before) - overlap(before, TAGS[0])].rstrip()


def call_entries(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Arguments as JSON in a string."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in calls
    ]
