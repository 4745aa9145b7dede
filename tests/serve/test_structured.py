"""Structured output and tool calls through OpenAI's own client: valid whatever a random model writes."""

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from grammar_support import MASK_ID, VOCABULARY, byte_level
from live_server import MESSAGES, client_of, diffusion, serving
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import DiffusionLM
from opdlm.sampling.engine import Engine
from support import tiny_model

pytest.importorskip("llguidance", reason="needs the extra: pip install 'opdlm[grammar]'")

TEMPLATE = (
    "{% if tools %}[{{ tools | tojson }}]{% endif %}{% for message in messages %}{{ message.role }}:"
    "{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }}"
    "{{ call.function.arguments.city }}</tool_call>{% endfor %};{% endfor %}a:"
)


class Book(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["ab", "abc"]
    year: int = Field(ge=0, le=99)
    tags: list[bool] = Field(max_length=2)


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    city: Literal["Oslo", "Rome"]
    days: int = Field(ge=1, le=9)


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": Place.model_json_schema()}}


TOOLS = [tool("rain"), tool("wind")]
WIND = {"type": "function", "function": {"name": "wind"}}
CALL = '<tool_call>\n{"name": "rain", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'


def lm_of(special_tags: bool = False) -> DiffusionLM:
    """Random weights over bytes; a chat template that has tools, and may have tags as special tokens."""
    tokenizer = byte_level.__wrapped__()  # one of its own
    tokenizer.chat_template = TEMPLATE
    if special_tags:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<tool_call>", "</tool_call>"]})
    model = tiny_model("llama", vocab_size=VOCABULARY, max_position_embeddings=2048)
    defaults = GenerationSettings.model_validate({"decoding": "dynamic:0.3", "max_new_tokens": 200})
    return DiffusionLM(BlockDiffusionModel(model, Geometry(4, "shifted", "causal"), MASK_ID), tokenizer, defaults)


@cache
def tooled() -> DiffusionLM:
    return lm_of()


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    models = {"tooled": tooled(), "tagged": lm_of(special_tags=True), "diffusion": diffusion()}
    with serving(models) as url, client_of(url) as made:
        yield made


def ask(client: Any, model: str = "tooled", **settings: Any) -> Any:
    """The only choice."""
    asked = {"messages": MESSAGES} | settings
    return client.chat.completions.create(model=model, **asked).choices[0]


def ask_stream(client: Any, model: str = "tooled", **settings: Any) -> tuple[Any, list[Any]]:
    """The choice that OpenAI's own helper puts together, and the chunks."""
    asked = {"messages": MESSAGES} | settings
    with client.chat.completions.stream(model=model, **asked) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        return stream.get_final_completion().choices[0], chunks


def writes(text: str) -> dict[str, Any]:
    """Settings with which the model, whatever its weights, writes this text: a regular expression has no other."""
    return {"regex": re.sub(r"([{}()\[\].|?*+^$\\])", r"\\\1", text)}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the model write a text where it is free to write any."""

    def script(text: str) -> None:
        requests = DiffusionLM.requests

        def scripted(self: DiffusionLM, prompts: Any, settings: GenerationSettings, *rest: Any) -> Any:
            if settings.constraint is None:
                settings = settings.model_copy(update=writes(text))
            return requests(self, prompts, settings, *rest)

        monkeypatch.setattr(DiffusionLM, "requests", scripted)

    return script


FORMAT = {"type": "json_schema", "json_schema": {"name": "book", "schema": Book.model_json_schema(), "strict": True}}


@pytest.mark.parametrize("decoding", ["dynamic:0.3", "static:3", "checked"])
def test_a_response_is_json_of_the_schema(decoding: str, client: Any) -> None:
    """Else a client that asks for a schema would get what the model happens to write, or another text than Python."""
    asked: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    ids = encode_prompt(tooled().tokenizer, MESSAGES)
    expected = tooled().decode(tooled().generate([ids], json_schema=Book, decoding=decoding, **asked))[0]
    asked |= {"response_format": FORMAT, "extra_body": {"decoding": decoding}}
    whole, (streamed, _) = ask(client, **asked), ask_stream(client, **asked)
    Book.model_validate_json(whole.message.content)
    assert whole.message.content == streamed.message.content == expected
    assert whole.finish_reason == streamed.finish_reason == "stop"


def test_a_pydantic_model_is_parsed(client: Any) -> None:
    """Else the most used call of OpenAI's client would fail, or would read what was cut off."""
    asked: dict[str, Any] = {"model": "tooled", "messages": MESSAGES, "response_format": Book}
    assert isinstance(client.chat.completions.parse(**asked).choices[0].message.parsed, Book)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**asked, max_tokens=3, extra_body={"decoding": "sequential"})


def test_json_object_is_any_object(client: Any) -> None:
    """Else the older form of the field would do nothing. A random model never closes what it opens: it is cut off."""
    choice = ask(client, response_format={"type": "json_object"}, max_tokens=30)
    assert choice.message.content.startswith("{")
    assert choice.finish_reason == "length"


@pytest.mark.parametrize(
    "field",
    [{"regex": "(ab|ba){2,5}"}, {"grammar": 'start: ("ab" | "ba")~2..5'}, {"json_schema": Book.model_json_schema()}],
    ids=str,
)
def test_our_fields_hold_in_both_endpoints(field: dict[str, Any], client: Any) -> None:
    """Else regular expressions and grammars could not be asked for over HTTP."""
    texts = [ask(client, extra_body=field).message.content]
    texts += [
        one.text for one in client.completions.create(model="tooled", prompt=["ab", "b"], extra_body=field).choices
    ]
    for text in texts:
        if "json_schema" in field:
            Book.model_validate_json(text)
        else:
            assert re.fullmatch("(ab|ba){2,5}", text)


@pytest.mark.parametrize("decoding", ["dynamic:0.3", "checked"])
def test_a_stop_string_in_forced_text_ends_it(decoding: str, client: Any) -> None:
    """Else the stream and the whole text would differ, and both pass the stop string."""
    extra = {"regex": "hello STOP world[ab]{9}", "decoding": decoding}
    whole = ask(client, stop="STOP", extra_body=extra)
    streamed, _ = ask_stream(client, stop="STOP", extra_body=extra)
    assert whole.message.content == streamed.message.content == "hello "
    assert whole.finish_reason == streamed.finish_reason == "stop"


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objct"}}}},
     "response_format", "Invalid type: objct"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
     "response_format", "not"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "its type is json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format", "'json_object'"),
    ({"json_schema": "{"}, "json_schema", "no JSON"),
    ({"regex": "(a"}, "regex", "unclosed group"),
    ({"grammar": "start: x"}, "grammar", "unknown name"),
    ({"regex": "a", "grammar": 'start: "a"'}, None, "one of the two"),
    ({"regex": "a", "response_format": {"type": "json_object"}}, "regex", "leave one of them out"),
    ({"regex": "a", "tools": TOOLS}, "regex", "no room for tool calls"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools", "tools.0.function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}], "tool_choice": "required"},
     "tools", "not"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
      "tool_choice": "required"}, "tools", "make it an object"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "choose one"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "no tool 'f'"),
    ({"tools": TOOLS, "model": "diffusion"}, "messages", "knows no tools"),
    ({"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
     "messages", "no tool call"),
    ({"json_schema": {}, "model": "diffusion"}, "json_schema", "bytes of this tokenizer"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "message"), BAD, ids=lambda value: str(value)[:60])
def test_a_mistake_is_told_before_anything_is_written(
    body: dict[str, Any], param: str | None, message: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a mistake would be ignored, or end a stream that has begun, or take a place in the batch."""
    monkeypatch.setattr(Engine, "add", None)
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body={"model": "tooled", "messages": MESSAGES} | body, cast_to=object)
    assert message in refused.value.message
    assert refused.value.param == param


def test_a_missing_extra_is_named(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the server would fail with a trace, or write free text, where llguidance is not installed."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(openai.BadRequestError, match=r"pip install 'opdlm\[grammar\]'"):
        ask(client, model="diffusion", response_format=FORMAT)


@pytest.mark.parametrize("model", ["tooled", "tagged"])
@pytest.mark.parametrize("choice", ["required", WIND], ids=["required", "named"])
def test_a_call_that_must_come_is_valid(model: str, choice: Any, client: Any) -> None:
    """Else an agent would get text where it needs a call, or arguments that its function does not take."""
    asked = {"model": model, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": choice != "required"}
    for found in (ask(client, **asked), ask_stream(client, **asked)[0]):
        assert found.finish_reason == "tool_calls"
        assert not found.message.content
        (call,) = found.message.tool_calls
        assert call.function.name in (["rain", "wind"] if choice == "required" else ["wind"])
        assert call.id.startswith("call_")
        Place.model_validate_json(call.function.arguments)


class Leg(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    place: Place
    back: "Leg | None"


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    default: Leg
    ref: Literal["#/$defs/Leg"] = Field(alias="$ref")


def test_arguments_may_be_models_in_models(client: Any) -> None:
    """Else tools whose schema has definitions, as every nested pydantic model has, could not be demanded."""
    function = {"name": "go", "parameters": Trip.model_json_schema()}
    tools = [tool("rain"), {"type": "function", "function": function}]
    choice = {"type": "function", "function": {"name": "go"}}
    for asked in ({"tool_choice": choice}, {"tool_choice": "required", "parallel_tool_calls": False}):
        for seed in range(3):
            (call,) = ask(client, tools=tools, temperature=1.0, seed=seed, **asked).message.tool_calls
            model = Trip if call.function.name == "go" else Place
            model.model_validate_json(call.function.arguments)


def test_several_calls_may_come(client: Any) -> None:
    """Else a model could ask one thing at a time only. This one writes calls until it is cut off."""
    found = ask(client, tools=TOOLS, tool_choice="required", max_tokens=160, logit_bias={"2": -100})
    assert found.finish_reason == "length"
    assert len(found.message.tool_calls) > 1
    assert len({call.id for call in found.message.tool_calls}) == len(found.message.tool_calls)
    assert "<tool_call>".startswith((found.message.content or "")[:11]), "no white space of what is between calls"


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("Let me see.\n" + CALL, "Let me see.", ["rain"]),
        (CALL + "\n" + CALL.replace("rain", "wind"), None, ["rain", "wind"]),
        ('{"name": "wind", "parameters": {"city": "Oslo", "days": 2}}', None, ["wind"]),
        ("a < b, no <tool_call>", "a < b, no <tool_call>", []),
        ('{"name": "Emma"}', '{"name": "Emma"}', []),
    ],
)
def test_free_text_may_call_tools(text: str, content: str | None, names: list[str], client: Any, scripted: Any) -> None:
    """Else calls would reach the client as text, or text that only looks like one would be lost."""
    scripted(text)
    for found in (ask(client, tools=TOOLS), (streamed := ask_stream(client, tools=TOOLS))[0]):
        assert (found.message.content or None) == content
        assert [call.function.name for call in found.message.tool_calls or []] == names
        assert found.finish_reason == ("tool_calls" if names else "stop")
        for call in found.message.tool_calls or []:
            assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 2}
    deltas = [chunk.choices[0].delta for chunk in streamed[1]]
    assert sum(bool(delta.tool_calls) for delta in deltas) == bool(names)


def test_without_a_choice_of_tools_nothing_is_a_call(client: Any, scripted: Any) -> None:
    """Else `tool_choice="none"` would call them, or show them to the model."""
    scripted(CALL)
    answer = client.chat.completions.create(model="tooled", messages=MESSAGES, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(encode_prompt(tooled().tokenizer, MESSAGES))


def test_an_answer_beside_tools_keeps_to_its_schema(client: Any) -> None:
    """Else with tools at hand the response format would be forgotten, or a call could never come."""
    found = {}
    for seed in range(8):
        one = ask(client, tools=TOOLS, response_format=FORMAT, temperature=1.5, seed=seed, parallel_tool_calls=False)
        found[one.finish_reason] = one.message
    assert found.keys() == {"stop", "tool_calls"}
    Book.model_validate_json(found["stop"].content)
    Place.model_validate_json(found["tool_calls"].tool_calls[0].function.arguments)


def test_a_call_and_its_result_go_back_to_the_model(client: Any, scripted: Any) -> None:
    """Else an agent could not go on: its client sends back the message as it came, and the result behind it."""
    scripted(CALL)
    asked = {"model": "tooled", "tools": TOOLS}
    message = ask(client, **asked).message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": [{"type": "text", "text": "wet"}]}
    answer = client.chat.completions.create(messages=[*MESSAGES, message, result], **asked)
    offered = tooled().tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, tokenize=False).partition("user:")[0]
    prompt = f"{offered}user:what is it;assistant:<tool_call>rainOslo</tool_call>;tool:wet;a:"
    assert answer.usage.prompt_tokens == len(tooled().tokenizer(prompt, add_special_tokens=False)["input_ids"])


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # of the client's own types
def test_arguments_are_parsed(client: Any) -> None:
    """Else the client's own way to declare a tool would not work."""
    tools = [openai.pydantic_function_tool(Place)]
    asked: dict[str, Any] = {"model": "tooled", "messages": MESSAGES, "tools": tools, "tool_choice": "required"}
    answer = client.chat.completions.parse(**asked, parallel_tool_calls=False)
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Place)
