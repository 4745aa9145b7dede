"""Tool calls in responses, as chat templates of several families write them."""

import json

import pytest

from opdlm.models.tool_calls import Message, ToolCall, parse_tool_calls

RAIN = ToolCall("weather", {"city": "Oslo", "days": 2})
TIME = ToolCall("time", {})
SAY = ToolCall("say", {"text": "<tool_call></tool_call>", "to": [["a"], {}]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>',
            Message("Let me see.", (RAIN,)),
        ),
        (
            '<tool_call>{"name": "time", "arguments": {}}</tool_call>\n<tool_call>{"name": "weather", "arguments": '
            '{"city": "Oslo", "days": 2}}</tool_call>',
            Message("", (TIME, RAIN)),
        ),
        (
            '<tool_call>[{"name": "time"}, {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}]</tool_call>',
            Message("", (TIME, RAIN)),
        ),
        (
            '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 2}"}</tool_call>',
            Message("", (RAIN,)),
        ),
        ('{"name": "weather", "parameters": {"city": "Oslo", "days": 2}}', Message("", (RAIN,))),
        ('<|python_tag|>{"name": "time", "parameters": {}}', Message("", (TIME,))),
        (
            '{"name": "time", "parameters": {}}; {"name": "weather", "parameters": {"city": "Oslo", "days": 2}}',
            Message("", (TIME, RAIN)),
        ),
        (
            'So <tool_call>{"name": "say", "arguments": {"text": "<tool_call></tool_call>", "to": [["a"], {}]}}'
            '</tool_call>\n<tool_call>[</tool_call> <tool_call>{"name": "time"}</tool_call>',
            Message("So <tool_call>[</tool_call>", (SAY, TIME)),
        ),
    ],
)
def test_each_form_is_read(text: str, expected: Message) -> None:
    """Else a client of one family's models would get calls as text."""
    assert parse_tool_calls(text, ["weather", "time"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "It rains in Oslo.",
        '<tool_call>{"name": "weather", "arguments": {"city"</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '{"name": "Emma", "parameters": {}}',
        '{"name": "weather", "parameters": {}} and then',
        '{"answer": 42}',
        "[]",
        "",
        "<tool_call>" + "[" * 9000,
        '<tool_call>{"name": "time"} and more</tool_call>',
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    """Else an answer in JSON would vanish into a call, or a call that is cut off would lose its text."""
    assert parse_tool_calls(text, ["weather", "time"]) == Message(text)


def test_a_bare_call_needs_a_tool_that_was_offered() -> None:
    """Else a structured answer with a field `name` would be taken for a call."""
    text = json.dumps({"name": "weather", "parameters": {}})
    assert parse_tool_calls(text).calls == ()
    assert parse_tool_calls(text, ["weather"]).calls == (ToolCall("weather", {}),)
