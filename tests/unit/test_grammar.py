"""Compiling what a response must be: tokenizers, and the mistakes that are refused before any forward."""

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grammar_support import EOS, MASK_ID, VOCABULARY, byte_fallback, byte_level, grammars, language
from opdlm.config import CONSTRAINTS, GenerationSettings, settings_from
from opdlm.errors import ConfigError, MissingExtraError, UsageError
from opdlm.models.tool_calls import ToolCall, parse_tool_calls, tool_call_grammar
from opdlm.sampling.grammar import Grammar, Grammars
from opdlm.sampling.requests import continuations, fillings
from opdlm.tiny.weights import student_path
from support import tiny_tokenizer

QWEN2 = Path(__file__).parents[3] / "shared" / "tokenizers" / "qwen2"

pytest.importorskip("llguidance", reason="needs the extra: pip install 'opdlm[grammar]'")


def compiled(made: Grammars, **constraint: Any) -> Grammar:
    found = made.of(GenerationSettings(**constraint))
    assert found is not None
    return found


def allowed(matcher: Any, vocabulary: int) -> list[int]:
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    bits = allocate_token_bitmask(1, vocabulary)
    fill_next_token_bitmask(matcher, bits, 0)
    return np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[:vocabulary])[0].tolist()


def tokenizers() -> list[tuple[str, PreTrainedTokenizerBase]]:
    return [
        ("byte level", byte_level()),
        ("byte fallback", byte_fallback()),
        ("embedded", AutoTokenizer.from_pretrained(student_path())),
    ]


@pytest.mark.parametrize(("name", "tokenizer"), tokenizers(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_tokenizers_own_tokens_are_followed(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Else the bytes behind its tokens are taken for others; and no special token may stand inside a text."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "string"}},
        "required": ["a", "b"],
    }
    text = '{"a": true, "b": "x abc, 12"}' if name != "embedded" else '{"a": false, "b": "\u00e9t\u00e9"}'
    vocabulary, stop = len(tokenizer) + 5, tokenizer.eos_token_id
    assert isinstance(stop, int)
    matcher = compiled(Grammars(tokenizer, vocabulary, (stop,)), json_schema=schema).matcher()
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        found = allowed(matcher, vocabulary)
        assert token in found
        assert not set(tokenizer.all_special_ids) & set(found)
        if forced := matcher.compute_ff_tokens():
            assert found == forced[:1], "what is forced is what alone is allowed"
        assert matcher.consume_token(token), matcher.get_error()
    assert allowed(matcher, vocabulary) == [stop]
    assert matcher.is_stopped()


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")  # of transformers 5.10
def test_qwens_tokenizer() -> None:
    """A vocabulary of 152,000 tokens, some of which are added ones."""
    if not QWEN2.is_dir():
        pytest.skip("needs the tokenizer in ../shared/tokenizers/qwen2")
    tokenizer = AutoTokenizer.from_pretrained(QWEN2)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    made = Grammars(tokenizer, 151_936, (stop,))
    tools = [{"function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}]
    matcher = compiled(made, grammar=tool_call_grammar(tools, tokenizer)).matcher()
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 12}}\n</tool_call>'
    for token in tokenizer(text)["input_ids"]:
        assert matcher.consume_token(token), matcher.get_error()
    assert stop in allowed(matcher, 151_936)
    assert parse_tool_calls(text).calls == (ToolCall("add", {"a": 12}),)


def test_masks_are_those_of_a_brute_force() -> None:
    """Else the first token of a text would be limited too much or too little."""
    words = {token: word for word, token in byte_level().get_vocab().items()}
    matcher = compiled(grammars(), regex="(ab|ba|c){1,2}").matcher()
    found = {words[token] for token in allowed(matcher, VOCABULARY)}
    texts = language("(ab|ba|c){1,2}", "abc", 4)
    assert found == {word for word in words.values() if any(text.startswith(word) for text in texts)}
    assert found == {"a", "b", "c", "ab", "abc"}


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"json_schema": {"type": "objet"}}, "json_schema: Invalid type: objet"),
        ({"json_schema": {"not": {"type": "string"}}}, r'json_schema: Unimplemented keys: \["not"\]'),
        ({"json_schema": {"$ref": "#/nowhere"}}, "json_schema: "),
        ({"json_schema": {"enum": []}}, "json_schema: "),
        ({"regex": "a(b"}, "regex: .*unclosed group"),
        ({"regex": "(?=a)b"}, "regex: .*look-around"),
        ({"grammar": "start: nothing"}, "grammar: .*unknown name"),
        ({"grammar": "no start at all"}, "grammar: "),
        ({"json_schema": {"const": "\ud83d"}}, "json_schema: it has half of a surrogate pair"),
        ({"regex": "\ud83d"}, "regex: it has half of a surrogate pair"),
        ({"grammar": 'start: "\ud83d"'}, "grammar: it has half of a surrogate pair"),
        ({"json_schema": {"const": b"a"}}, "json_schema: this is no JSON .*bytes"),
        ({"json_schema": {"type": "number", "maximum": float("nan")}}, "json_schema: expected value"),
        ({"regex": r"a[^\s\S]"}, "regex: no text can be like this"),
        ({"grammar": 'start: "a" T\nT: /b/ & /c/'}, "grammar: no text can be like this"),
        ({"json_schema": {"$ref": "#"}}, "json_schema: no text can be like this"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 1}}, "minimum .5. is greater than maximum .1."),
        ({"json_schema": {"type": "object", "properties": {"a": False}, "required": ["a"]}}, "'a' is unsatisfiable"),
    ],
)
def test_what_is_not_valid_is_refused_in_one_line(constraint: dict[str, Any], message: str) -> None:
    """Else a server would find out in the middle of a batch, or llguidance ignore half of a schema."""
    with pytest.raises(UsageError, match=message) as raised:
        grammars().of(GenerationSettings(**constraint))
    assert "\n" not in str(raised.value)


def chained(count: int) -> dict[str, Any]:
    """A number, by way of so many references."""
    links: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{count}": {"const": 1}}}


def nested(count: int) -> dict[str, Any]:
    """An object in an object, so many times."""
    schema: dict[str, Any] = {"const": 1}
    for _ in range(count):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"json_schema": chained(3000)}, "too deeply for a stack of 1 MiB; make it simpler"),
        (
            {"grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(10_000)) + 'r10000: "a"'},
            "too deeply",
        ),
        ({"json_schema": nested(200)}, "recursion limit exceeded"),
        ({"json_schema": nested(3000)}, "nested too deeply; make it flatter"),
        ({"json_schema": {"type": "integer", "multipleOf": 99_999_989}}, "more than 1 s to prepare; make it simpler"),
        ({"grammar": 'start: T\nT: "z" | (/(a{9973})+/ & /(a{9949})+/)'}, "more than 1 s to prepare"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_what_llguidance_cannot_survive_is_refused(constraint: dict[str, Any], message: str) -> None:
    """Else one request would end the process with all others, or hold them up for hours."""
    with pytest.raises(UsageError, match=message):
        grammars().of(GenerationSettings(**constraint))
    compiled(grammars(), regex="ab?")


def test_large_grammars_are_taken() -> None:
    """Else the limits would keep out what people write: many values, deep objects, numbers of any size."""
    for schema in (
        {"enum": [f"value {i}" for i in range(5000)]},
        chained(100),
        nested(30),
        {"type": "integer", "maximum": 10**30},
        {"type": "integer", "multipleOf": 1000},
    ):
        compiled(grammars(), json_schema=schema)


def test_the_process_that_tries_ends_with_its_tokenizer() -> None:
    """Else every model that was loaded once would leave a process behind."""
    made = Grammars(byte_level(), VOCABULARY, (EOS,))
    compiled(made, regex="a")
    process = made._trial._process
    assert process is not None
    assert process.poll() is None
    del made
    gc.collect()
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"json_schema": "{"}, "json_schema: this is no JSON"),
        ({"json_schema": "[" * 9000}, "json_schema: it is nested too deeply"),
        ({"json_schema": "[1]"}, "json_schema"),
        ({"json_schema": {}, "regex": "a"}, "json_schema and regex both say"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    """Else one of two constraints would be dropped silently."""
    with pytest.raises(ConfigError, match=message):
        settings_from(GenerationSettings, settings)


def test_a_pydantic_model_is_a_schema() -> None:
    """What users have at hand, as with the openai client's `parse`."""

    class Sum(BaseModel):
        total: int

    settings = settings_from(GenerationSettings, {"json_schema": Sum})
    assert settings.constraint == ("json_schema", Sum.model_json_schema())
    assert settings_from(GenerationSettings, settings.model_dump()) == settings


def test_a_constraint_is_never_ignored() -> None:
    """Else a request that was made without the compiled grammar would be answered in free text."""
    with pytest.raises(UsageError, match="not compiled"):
        continuations([[5]], GenerationSettings(regex="a"))
    with pytest.raises(UsageError, match="fills gaps"):
        fillings([[5, MASK_ID]], GenerationSettings(regex="a"), MASK_ID, 4)
    assert CONSTRAINTS == ("json_schema", "regex", "grammar")


def test_models_that_can_have_no_grammar() -> None:
    """Else a text could never end, or its bytes would be guessed."""
    with pytest.raises(UsageError, match="no stop token"):
        Grammars(byte_level(), VOCABULARY, ())
    with pytest.raises(UsageError, match="byte-level"):
        Grammars(tiny_tokenizer(), 97, (2,))


def test_the_missing_extra_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a user would see an ImportError of a package that they never asked for."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"opdlm\[grammar\]"):
        Grammars(byte_level(), VOCABULARY, (EOS,))
