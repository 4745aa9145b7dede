"""Responses that call tools, token by token: text goes out as it comes, calls never do."""

import pytest

from grammar_support import byte_level
from opdlm.models.tool_calls import TAGS, parse_tool_calls
from opdlm.serve.calling import CallingText

CALL = '<tool_call>\n{"name": "rain", "arguments": {}}\n</tool_call>'
TEXTS = [
    "It rains.",
    " a < b \n",
    "Let me see.\n\n" + CALL,
    "\n" + CALL + "\n" + CALL,
    "First " + CALL + " then " + CALL + "\n",
    "no <tool_call> at all",
    "<tool_call>{</tool_call>",
    '{"name": "rain", "parameters": {}}',
    '<|python_tag|>{"name": "rain", "parameters": {}}',
    '{"name": "Emma"}',
    "<|pythons bite",
    "",
]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_content(text: str, special: bool) -> None:
    """Else who reads a stream would see parts of calls, or another text than who waits; also with tags of one token."""
    tokenizer = byte_level.__wrapped__()
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": list(TAGS)})
    ids = tokenizer(text + "</s>", add_special_tokens=False)["input_ids"]
    growing = CallingText(tokenizer, (), ["rain"])
    pieces = [growing.more(ids[:count]) for count in range(len(ids))] + [growing.more(ids, last=True)]
    expected = parse_tool_calls(text, ["rain"])
    assert "".join(pieces) == expected.content
    assert growing.calls == expected.calls
    assert not expected.calls or not any("<" in piece for piece in pieces)


def test_text_before_a_call_does_not_wait() -> None:
    """Else a stream with tools would be silent until its end."""
    ids = byte_level()("Let me see. " + CALL, add_special_tokens=False)["input_ids"]
    growing = CallingText(byte_level(), (), ["rain"])
    assert "".join(growing.more(ids[:count]) for count in range(8)) == "Let me"
