"""Tool calls in a response, in the form in which a model's chat template has taught it to write them.

- Tagged (Hermes, Qwen 2.5 and 3, SmolLM 2 and 3): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, once a
  call, or with a list of calls inside.
- Bare (Llama 3.1 and later): `{"name": ..., "parameters": {...}}` and nothing else, behind `<|python_tag|>` or not;
  several have `;` between them.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from opdlm.errors import PromptsError, UsageError

TAGS = ("<tool_call>", "</tool_call>")
"""Around a tagged call."""
PYTHON_TAG = "<|python_tag|>"
"""Before a bare one, in some models."""
_OPENS, _CLOSES = re.compile(r"<tool_call>\s*"), re.compile(r"\s*</tool_call>\s*")
_VALUES = ("const", "enum", "default", "examples")
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords of JSON schema: behind the first are values, behind the others schemas by name."""


@dataclass(frozen=True)
class ToolCall:
    """One call. Attributes: name: of the tool. arguments: by name."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """A response, taken apart. Attributes: content: the text without its calls. calls: in their order; may be none."""

    content: str
    calls: tuple[ToolCall, ...] = ()


def parse_tool_calls(text: str, tools: Collection[str] = ()) -> Message:
    """What a response says and which tools it calls.

    What only looks like a call (JSON that is cut off or has no name) stays in the content: nothing is lost.

    Args:
        text: the response without its stop token. Tags that are special tokens must be in it.
        tools: names of the tools that the request offers. A bare call counts only if it names one of them: a text
            that is JSON is an answer otherwise.
    """
    content, calls = _tagged_calls(text)
    if calls:
        return Message(content.rstrip(), tuple(calls))
    bare = _bare_calls(text.strip().removeprefix(PYTHON_TAG))
    if bare and all(call.name in tools for call in bare):
        return Message("", tuple(bare))
    return Message(text)


def tool_call_grammar(
    tools: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    several: bool = True,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """The `grammar` setting for a response that is one or more tagged calls of these tools, with valid arguments.

    Args:
        tools: as the OpenAI API gives them: {"type": "function", "function": {"name", "parameters"}}, `parameters` a
            JSON schema.
        tokenizer: says whether a tag is one token of its own.
        several: whether more than one call may be made.
        answer: a JSON schema: the response may be JSON of it instead.

    Raises:
        UsageError: `parameters` of a tool that are no object.
    """
    functions = [tool["function"] for tool in tools]
    kinds = [
        {
            "type": "object",
            "properties": {"name": {"const": one["name"]}, "arguments": {"$ref": f"#/$defs/{place}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for place, one in enumerate(functions)
    ]
    arguments = {str(place): _moved(_object(one), f"#/$defs/{place}") for place, one in enumerate(functions)}
    layout = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
    begin, end = TAGS if TAGS[0] in tokenizer.get_vocab() else (f'"{tag}"' for tag in TAGS)
    rules = [
        "start: calls" if answer is None else "start: calls | answer",
        'calls: call ("\\n" call)*' if several else "calls: call",
        f'call: {begin} "\\n" object "\\n" {end}',
        f"object: %json {json.dumps({**layout, 'anyOf': kinds, '$defs': arguments})}",
    ]
    if answer is not None:
        rules.append(f"answer: %json {json.dumps({**layout, **answer})}")
    return "\n".join(rules) + "\n"


def _object(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments."""
    schema = {"type": "object", **(function.get("parameters") or {})}
    if schema["type"] != "object":
        raise UsageError(
            f"setting tools: the parameters of {function['name']!r} have the type {schema['type']!r}, and arguments "
            "have names; make it an object"
        )
    return schema


def _moved(schema: Any, root: str) -> Any:
    """The same schema where it stands at `root` of another one: its references to itself begin there."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    new = {}
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            new[keyword] = {name: _moved(one, root) for name, one in value.items()}
        elif keyword == "$ref" and isinstance(value, str) and value.split("/")[0] == "#":
            new[keyword] = root + value.removeprefix("#")
        else:
            new[keyword] = value if keyword in _VALUES else _moved(value, root)
    return new


def with_arguments(calls: Any) -> list[dict[str, Any]]:
    """Calls of an earlier message, with arguments by name, as templates take them; the OpenAI API has them as text.

    PromptsError for what is no call.
    """
    read = []
    for call in calls if isinstance(calls, list) else [calls]:
        found = _call(call.get("function")) if isinstance(call, dict) else None
        if found is None:
            raise PromptsError(
                f"{repr(call)[:80]} in a message is no tool call; give {{'function': {{'name': ..., 'arguments': "
                "...}}, the arguments as a JSON object"
            )
        read.append({**call, "function": {**call["function"], "arguments": found.arguments}})
    return read


def _tagged_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The text without its tagged calls, and these. JSON says where one ends: a string in it may hold a closing tag."""
    content, calls, place = "", list[ToolCall](), 0
    for begin in _OPENS.finditer(text):
        value, end = _value(text, begin.end()) if begin.start() >= place else (None, 0)
        found, close = _calls_in(value), _CLOSES.match(text, end)
        if found and close:
            content, calls, place = content + text[place : begin.start()], calls + found, close.end()
    return content + text[place:], calls


def _value(text: str, place: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `place`, and where it ends; None where there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, place)
    except (ValueError, RecursionError):
        return None, place


def _calls_in(value: Any) -> list[ToolCall]:
    """Of a call, or a list of calls; none if any part of it is no call."""
    calls = [_call(one) for one in (value if isinstance(value, list) else [value])]
    return [] if None in calls else [call for call in calls if call is not None]


def _bare_calls(text: str) -> list[ToolCall]:
    """Of JSON objects with `;` between them, and nothing else."""
    return [call for call in found if call is not None] if (found := list(_objects(text))) and None not in found else []


def _objects(text: str) -> Iterator[ToolCall | None]:
    """Each as a call; None for what is none."""
    place = 0
    while place < len(text):
        value, place = _value(text, place)
        yield (call := _call(value))
        if call is None:
            return
        between = re.compile(r"\s*;?\s*").match(text, place)
        assert between is not None
        place = between.end()


def _call(value: Any) -> ToolCall | None:
    """{"name", "arguments"} or {"name", "parameters"}; arguments that are JSON in a string are read too."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None
