"""Responses that a grammar describes: valid under every way to decode, and losing nothing else."""

import json
import re
from itertools import pairwise, product
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

from grammar_support import (
    EOS,
    MASK_ID,
    TOKENS,
    VOCABULARY,
    byte_level,
    grammar_of,
    has_completion,
    language,
    vocabulary,
)
from lossless import drafting, responses
from opdlm.config import GenerationSettings
from opdlm.core.types import NEVER, Geometry, Rollout
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.constraining import Constraining
from opdlm.sampling.engine import Completion, Draft, Engine
from opdlm.sampling.requests import continuations
from support import tiny_model

pytest.importorskip("llguidance", reason="needs the extra: pip install 'opdlm[grammar]'")

PROMPTS = [
    torch.randint(4, VOCABULARY - 12, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 4, 6, 3)
]
BIAS = {EOS: 3.0, vocabulary()["a"]: 2.0, vocabulary()["b"]: 1.5}
RULES: list[dict[str, Any]] = [
    {"decoding": "static:2"},
    {"decoding": "static:3", "temperature": 1, "top_p": 0.9},
    {"decoding": "sequential:2"},
    {"decoding": "dynamic:0.5"},
    {"decoding": "dynamic:0.3", "temperature": 1.2, "hold_end": True},
    {"decoding": "prefix:0.02", "temperature": 0.8, "min_p": 0.01},
    {"decoding": "factor:2", "logit_bias": BIAS, "temperature": 1},
    {"decoding": "entropy:6", "repetition_penalty": 1.5},
    {"decoding": {"kind": "klass", "threshold": 0.02, "drift": 1.0, "history": 1}, "top_k": 9, "temperature": 1},
]
GEOMETRIES = [
    Geometry(4, "same"),
    Geometry(4, "shifted"),
    Geometry(8, "shifted", "causal"),
    Geometry(3, "same", "causal"),
]


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(max_length=6, pattern="^[a-z]*$")
    age: int = Field(ge=0, le=120)
    kind: Literal["ab", "abc", "true"]
    tags: list[bool] = Field(max_length=2)


def student(geometry: Geometry, seed: int = 0, **changes: Any) -> BlockDiffusionModel:
    return BlockDiffusionModel(tiny_model("llama", seed, vocab_size=VOCABULARY, **changes), geometry, MASK_ID)


def fond(geometry: Geometry, seed: int) -> BlockDiffusionModel:
    """A student that is sure of a, b and c, so that rules commit them behind gaps."""
    model = student(geometry, seed)
    wanted = [index for word, index in vocabulary().items() if set(word) <= set("abc")]
    head = model.model.get_output_embeddings().weight.data
    rows = 4 * head[wanted]
    head.zero_()
    head[wanted] = rows
    return model


def lossless(form: Any = "mask", window: int = 3, **changes: Any) -> DraftingModel:
    return drafting("llama", form, window, vocab_size=VOCABULARY, **changes)


def settings_of(**changes: Any) -> GenerationSettings:
    return GenerationSettings.model_validate({"max_new_tokens": 80} | changes)


def written(model: BlockDiffusionModel, settings: GenerationSettings, batch_size: int = 32) -> Rollout:
    requests = continuations(PROMPTS, settings, grammar=grammar_of(settings))
    return Engine(model, TOKENS, batch_size).write(requests)


def texts(rollout: Rollout) -> list[str]:
    """Of responses that are complete: no special token but the one at the end."""
    assert rollout.stopped.all()
    rows = responses(rollout)
    assert all(row[-1] == EOS and not {0, 1, EOS, MASK_ID} & set(row[:-1]) for row in rows)
    return [byte_level().decode(row[:-1]) for row in rows]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["decoding"])[:24])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_blocks_are_valid_json(geometry: Geometry, rule: dict[str, Any]) -> None:
    """The promise, under every rule and geometry: what is committed out of order is never without a completion."""
    settings = settings_of(json_schema=Person, **rule)
    for text in texts(written(student(geometry, geometry.block_size), settings)):
        Person.model_validate_json(text)
        assert text == json.dumps(json.loads(text)), "on one line, as json.dumps writes it"


@pytest.mark.parametrize("decoding", ["verified", "verified:1", "typical:0.05", "sequential"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_verified_text_is_valid_json(decoding: str, temperature: float) -> None:
    """Else a draft would be accepted, or picked in its place, that the schema does not allow."""
    settings = settings_of(json_schema=Person, decoding=decoding, temperature=temperature)
    for text in texts(written(lossless(), settings)):
        Person.model_validate_json(text)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["decoding"])[:24])
def test_whatever_is_committed_has_a_completion(rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle tries every string: else a token behind a gap could rule out whatever may fill it."""
    gaps, pins, along = 0, [], Constraining._along

    def noting(self: Constraining, *args: Any) -> Any:
        found = along(self, *args)
        pins.append(len(args[-1]))
        return found

    monkeypatch.setattr(Constraining, "_along", noting)
    regexes = ("(ab|ba|c){2,3}a?", "a{0,3}bc{0,3}|c(ab){0,2}", "[abc]{3}(ab|ca)[abc]{2}")
    for regex, geometry, seed in product(regexes, (Geometry(8, "same"), Geometry(4, "shifted")), range(4)):
        found = language(regex, "abc", 7)
        settings = settings_of(regex=regex, max_new_tokens=8, **rule)
        requests = continuations(PROMPTS, settings, watched=True, grammar=grammar_of(settings))
        engine = Engine(fond(geometry, seed), TOKENS)
        for request in requests:
            engine.add(request)
        while not engine.idle:
            for event in engine.step():
                done = isinstance(event, Completion)
                ids = event.rollout.input_ids[0] if done else event.input_ids
                length = int(event.rollout.length) if done else len(ids)
                response = ids[len(PROMPTS[event.request]) : length].tolist()
                assert has_completion(response, found), (regex, response)
                gaps += any(a == MASK_ID != b for a, b in pairwise(response))
                if done:
                    assert bool(event.rollout.stopped)
                    assert byte_level().decode(response[:-1]) in found
    if rule["decoding"] in ("static:2", "static:3", "dynamic:0.3", "entropy:6"):
        assert gaps > 5, "hardly anything was committed behind a gap: the test saw nothing"
        assert any(pins), "no draft ran into what was committed"


def reference(model: BlockDiffusionModel, settings: GenerationSettings) -> list[list[int]]:
    """Constrained AR decoding: the whole text again for each token, the argmax among what the matcher allows."""
    import numpy as np
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    rows = []
    for prompt in PROMPTS:
        matcher, ids = grammar_of(settings).matcher(), list(prompt)
        while len(ids) < len(prompt) + settings.max_new_tokens:
            bits = allocate_token_bitmask(1, VOCABULARY)
            fill_next_token_bitmask(matcher, bits, 0)
            allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[:VOCABULARY].astype(bool)
            with torch.no_grad():
                logits = model.logits(model.causal_hidden(torch.tensor([ids]))[0, -1])
            ids.append(int(logits.masked_fill(~torch.from_numpy(allowed), -torch.inf).argmax()))
            if ids[-1] == EOS:
                break
            assert matcher.consume_token(ids[-1])
        rows.append(ids[len(prompt) :])
    return rows


GRAMMARS: list[dict[str, Any]] = [
    {"json_schema": Person},
    {"json_schema": {"type": "object"}, "max_new_tokens": 25},
    {"regex": "(ab|ba|c){2,9}a?"},
    {"regex": "true|[a-z ]{3,12}\\."},
    {"grammar": 'start: "(" start ")" | "a"\n', "max_new_tokens": 9},
]


@pytest.mark.parametrize("constraint", GRAMMARS, ids=str)
@pytest.mark.parametrize("form", ["mask", "noise"])
def test_verified_text_is_that_of_constrained_ar_decoding(form: Any, constraint: dict[str, Any]) -> None:
    """Lossless under a grammar too: token for token the argmax under the mask, alone and in a batch."""
    model = lossless(form)
    expected = reference(model, settings_of(**constraint))
    for decoding, batch_size in (("verified", 32), ("verified:2", 2), ("verified:auto", 1), ("sequential", 3)):
        settings = settings_of(decoding=decoding, **constraint)
        assert responses(written(model, settings, batch_size)) == expected
    assert any(len(row) > 4 for row in expected)


@pytest.mark.parametrize("constraint", GRAMMARS, ids=str)
def test_checked_text_is_that_of_constrained_ar_decoding(constraint: dict[str, Any]) -> None:
    """The other drafter, whose drafts end with the block: forced tokens that cross its end move no window."""
    for size in (4, 5):
        model = student(Geometry(size, "shifted", "causal"), initializer_range=0.1)
        expected = reference(model, settings_of(**constraint))
        for batch_size in (1, 32):
            settings = settings_of(decoding="checked", **constraint)
            assert responses(written(model, settings, batch_size)) == expected


@pytest.mark.parametrize("model", [student(Geometry(4, "shifted", "causal")), lossless()], ids=["student", "lossless"])
def test_forced_tokens_cost_no_forward(model: BlockDiffusionModel) -> None:
    """Else JSON would cost a forward for every bracket and key."""
    kinds = ("sequential", "verified") if isinstance(model, DraftingModel) else ("static", "checked")
    for decoding in kinds:
        constant = {"const": {"abc": [True, "bab ab"], "cab": "a" * 30}}
        settings = settings_of(json_schema=constant, decoding=decoding)
        rollout = written(model, settings)
        assert texts(rollout) == [json.dumps(constant["const"])] * len(PROMPTS)
        assert rollout.forwards.tolist() == [1] * len(PROMPTS), "only the one that hands the row out"
        settings = settings_of(regex="x{20}(y|z)x{20}(y|z)x{20}", decoding=decoding)
        rollout = written(model, settings)
        assert (rollout.forwards <= 2).all(), "one for each choice"
        given = rollout.commit_step[:, : int(rollout.length.max())] < 0
        assert given.sum(-1).tolist() == rollout.prompt_length.tolist(), "forced tokens are written ones"
        assert rollout.confidence is not None
        for row in range(len(PROMPTS)):
            assert (rollout.confidence[row, rollout.prompt_length[row] : rollout.length[row]] > 0).all()


@pytest.mark.parametrize("stop", ["STOP", "h", "Od", "d", "ld", "never"])
@pytest.mark.parametrize("model", [student(Geometry(4, "shifted", "causal")), lossless()], ids=["student", "lossless"])
def test_a_stop_string_in_what_is_forced_at_the_front_ends_the_text(model: BlockDiffusionModel, stop: str) -> None:
    """Else what begins a response would be written past it, since it is there before any step looks for one."""
    text = "hello STOP world"
    kinds = ("sequential", "verified") if isinstance(model, DraftingModel) else ("static", "prefix:0.1", "checked")
    for decoding in kinds:
        settings = settings_of(grammar=f'start: "{text}" /[a-c]{{5}}/', decoding=decoding, stop_strings=stop)
        requests = continuations(PROMPTS, settings, grammar=grammar_of(settings))
        rollout = Engine(model, TOKENS, 32, byte_level()).write(requests)
        assert rollout.stopped.all()
        for row in responses(rollout):
            written = byte_level().decode(row, skip_special_tokens=True)
            assert written == text.partition(stop)[0] + stop if stop in text else written.startswith(text)


MIXED: list[dict[str, Any]] = [{"json_schema": Person}, {}, {"regex": "(ab|ba|c){2,9}a?"}, {}, {"regex": "a{9}[bc]"}]


@pytest.mark.parametrize("decoding", ["static:2", "dynamic:0.03", "checked", "verified"])
def test_rows_of_a_batch_do_not_know_of_each_other(decoding: str) -> None:
    """Else a grammar, or the tokens that it forces, would reach other rows: their masks, places or caches."""
    model = lossless() if decoding == "verified" else student(Geometry(4, "shifted", "causal"))
    requests = []
    for index, choice in enumerate(MIXED * 2):
        settings = settings_of(decoding=decoding, max_new_tokens=40, temperature=index % 2, **choice)
        grammar = grammar_of(settings) if choice else None
        requests += continuations([PROMPTS[index % 4]], settings, [index], grammar=grammar)
    alone = [Engine(model, TOKENS).write([request]) for request in requests]
    for batch_size in (3, 32):
        together = Engine(model, TOKENS, batch_size).write(requests)
        for row, expected in enumerate(alone):
            end = int(expected.length)
            assert together.input_ids[row, :end].tolist() == expected.input_ids[0, :end].tolist()
            assert together.forwards[row] == expected.forwards[0]
            assert together.commit_step[row, :end].tolist() == expected.commit_step[0, :end].tolist()


def test_a_cancelled_row_leaves_nothing_behind() -> None:
    """Else its matcher would be kept, or given to the next row in its slot."""
    settings = settings_of(json_schema=Person, decoding="static:2")
    requests = continuations(PROMPTS, settings, grammar=grammar_of(settings))
    model = student(Geometry(4))
    expected = Engine(model, TOKENS).write(requests)
    engine = Engine(model, TOKENS, 2)
    for request in requests * 2:
        engine.add(request)
    engine.step()
    engine.cancel(1)
    engine.cancel(4)
    rows = {}
    while not engine.idle:
        rows |= {event.request: event.rollout for event in engine.step() if not isinstance(event, Draft)}
    assert rows.keys() == {0, 2, 3, 5, 6, 7}
    for number, row in rows.items():
        assert responses(row)[0] == responses(expected)[number % 4]
    assert len(engine._slots._constraining._rows) <= 2, "matchers of rows that are done go"


@pytest.mark.parametrize("decoding", ["static:2", "dynamic:0.03", "checked", "verified"])
def test_a_response_that_is_cut_off_is_the_beginning_of_a_valid_one(decoding: str) -> None:
    """Else what --max-new-tokens leaves could not even be continued, or would be taken for a complete text."""
    model = lossless() if decoding == "verified" else student(Geometry(4, "shifted", "causal"))
    for length in range(1, 12):
        settings = settings_of(regex="(abc|cab){4,9}b", decoding=decoding, max_new_tokens=length)
        rollout = written(model, settings)
        for row, stopped in zip(responses(rollout), rollout.stopped.tolist(), strict=True):
            text = byte_level().decode(row, skip_special_tokens=True)
            assert stopped or len(row) == length
            assert re.fullmatch("(abc|cab){4,9}b" if stopped else "(abc|cab){0,9}(a|ab|c|ca)?b?", text)


def test_a_stop_token_stands_only_where_the_text_is_complete() -> None:
    """Else a model that loves to stop would leave half of an object, its stop token counting as the end."""
    bias = {EOS: 1e30}
    for decoding in ("static:4", "dynamic:0.01", "checked"):
        settings = settings_of(regex="(xy){3}z*", decoding=decoding, logit_bias=bias)
        assert texts(written(student(Geometry(4, "shifted", "causal")), settings)) == ["xyxyxy"] * len(PROMPTS)


def test_no_row_is_constrained_where_none_asks() -> None:
    """The cost of what is not used: no mask, no matcher, no question to the device."""
    engine = Engine(student(Geometry(4)), TOKENS)
    engine.write(continuations(PROMPTS, settings_of(max_new_tokens=9)))
    assert engine._slots.constraining is None
    assert engine._slots._constraining is None


@pytest.mark.parametrize("decoding", ["static:2", "verified"])
def test_a_grammar_that_fails_cuts_its_row_off(decoding: str) -> None:
    """Else one request at a limit of the library would end all others, or go on without its grammar."""
    model = lossless() if decoding == "verified" else student(Geometry(4))
    settings = settings_of(json_schema=Person, decoding=decoding)
    requests = continuations(PROMPTS, settings, grammar=grammar_of(settings))
    expected = responses(Engine(model, TOKENS).write(requests))
    engine = Engine(model, TOKENS)
    for request in requests:
        engine.add(request)
    engine.step()
    failing = engine._slots._constraining._rows[1]
    known = failing.known - len(PROMPTS[1])
    assert not failing.matcher.consume_token(vocabulary()["~"])
    rows = {}
    while not engine.idle:
        rows |= {event.request: event.rollout for event in engine.step() if isinstance(event, Completion)}
    assert not rows[1].stopped
    assert responses(rows[1])[0] == expected[1][:known]
    assert [responses(rows[row])[0] for row in (0, 2, 3)] == [expected[row] for row in (0, 2, 3)]


def test_several_stop_tokens_end_a_text() -> None:
    """Chat models stop at others than their tokenizer's one."""
    from opdlm.sampling.grammar import Grammars

    settings = settings_of(regex="(ab)+c", decoding="static:2")
    grammar = Grammars(byte_level(), VOCABULARY, (1, EOS)).of(settings)
    rollout = Engine(student(Geometry(4)), SpecialTokens(MASK_ID, 0, (1, EOS))).write(
        continuations(PROMPTS, settings, grammar=grammar)
    )
    assert rollout.stopped.all()
    for row in responses(rollout):
        assert row[-1] in (1, EOS)
        assert re.fullmatch("(ab)+c", byte_level().decode(row[:-1]))
    assert (rollout.commit_step != NEVER).any()
