"""Verified decoding writes what the AR model writes, in no more forwards than tokens."""

import itertools
import random
from typing import Any

import pytest
import torch

from lossless import ENDLESS, drafting, responses
from opdlm.config import GenerationSettings
from opdlm.models.drafting import DraftingModel
from opdlm.models.pace import Pace, WindowShape
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling import verifying
from opdlm.sampling.engine import Completion, Engine
from opdlm.sampling.requests import continuations
from support import ARCHITECTURES, VOCABULARY, tiny_model

LENGTHS = (1, 2, 5, 8, 3, 11)
PROMPTS = [
    torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in LENGTHS
]
FEW_IDS = [[3 + number % 8, 5, 9] for number in range(8)]
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 1.0, "repetition_penalty": 1.5},
    {"temperature": 0.0, "repetition_penalty": 2.0},
    {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7},
    {"temperature": 1.0, "frequency_penalty": -0.7, "repetition_penalty": 1.2},
    {"temperature": 0.5, "logit_bias": {7: 2.5, 9: -3.0}},
]


def settings_of(decoding: Any = "verified", **changes: Any) -> GenerationSettings:
    return GenerationSettings.model_validate({"decoding": decoding, "max_new_tokens": 24} | changes)


def written(model: DraftingModel, settings: GenerationSettings, tokens: SpecialTokens = ENDLESS, batch_size: int = 32):
    return Engine(model, tokens, batch_size).write(continuations(PROMPTS, settings))


def original(model: DraftingModel, stops: tuple[int, ...] = (), **changes: Any) -> list[list[int]]:
    """What `generate` of transformers writes, row by row."""
    model.gate.width = 0
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        made = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
            eos_token_id=list(stops) or None, pad_token_id=0, **changes,
        )  # fmt: skip
        texts.append(made[0, len(prompt) :].tolist())
    return texts


@pytest.mark.parametrize("form", ["mask", "noise"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_text_is_that_of_generate(architecture: str, form: Any) -> None:
    """The promise of lossless decoding, on every architecture, at every batch size and for every prompt length."""
    model = drafting(architecture, form)
    expected = original(model)
    for batch_size in (1, 2, 32):
        rollout = written(model, settings_of(), batch_size=batch_size)
        assert responses(rollout) == expected
        assert (rollout.forwards <= rollout.length - rollout.prompt_length).all()


@pytest.mark.parametrize("window", [1, 3, 7])
def test_a_gate_that_knows_the_text_saves_forwards(window: int) -> None:
    """Else drafts would never be accepted, or a window's outputs would be taken for other places."""
    model = drafting(window=window, change=0.0, initializer_range=0.02)
    model.model.get_output_embeddings().weight.data.zero_()
    model.model.get_output_embeddings().weight.data[5] += 1.0  # every output, drafted or not, says the same
    model.model.base_model.norm.weight.data.fill_(1.0)
    rollout = written(model, settings_of())
    texts = responses(rollout)
    assert texts == original(model)
    if all(len(set(text)) == 1 for text in texts):
        assert rollout.forwards.tolist() == [-(-23 // (window + 1)) + 1] * len(PROMPTS)


@pytest.mark.parametrize("form", ["mask", "noise"])
def test_drafts_are_the_same_however_often_the_head_is_read(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else small batches, whose windows go through the LM head with the text, would draft from another window."""
    model = drafting(form=form, window=4, vocab_size=12)
    forwards = []
    for most in (10_000, 0):
        monkeypatch.setattr(verifying, "_FEW_ON", {"cpu": most})
        forwards.append(Engine(model, ENDLESS).write(continuations(FEW_IDS, settings_of())).forwards.tolist())
    assert forwards[0] == forwards[1]
    assert sum(forwards[0]) < 24 * len(FEW_IDS), "no draft holds"


@pytest.mark.parametrize("choice", SAMPLED)
def test_sampled_text_does_not_depend_on_the_drafts(choice: dict[str, Any]) -> None:
    """With the same seeds, drafts may change the forwards and nothing else; so the text has the AR model's law."""
    model = drafting()
    alone = written(model, settings_of({"kind": "verified", "drafts": 0}, **choice))
    assert (alone.forwards == 24).all()
    for decoding in ("verified:1", "verified:2", "verified"):
        for batch_size in (1, 4):
            rollout = written(model, settings_of(decoding, **choice), batch_size=batch_size)
            assert responses(rollout) == responses(alone)
            assert (rollout.forwards <= 24).all()
            assert rollout.confidence is not None
            assert alone.confidence is not None
            torch.testing.assert_close(rollout.confidence, alone.confidence, atol=2e-5, rtol=1e-4)
    if choice["temperature"] == 0 and "repetition_penalty" in choice:
        assert responses(alone) == original(model, repetition_penalty=choice["repetition_penalty"])


def test_stop_tokens_inside_a_window_and_the_length_cap() -> None:
    """Else text behind a stop token, or too much of it, would be handed out."""
    model = drafting(seed=1)
    free = original(model)
    stops = tuple({text[4] for text in free} | {free[0][9]})
    expected = original(model, stops)
    assert len({len(text) for text in expected}) > 1
    for batch_size in (1, 3, 32):
        rollout = written(model, settings_of(), SpecialTokens(0, 0, stops), batch_size)
        assert responses(rollout) == expected
        assert rollout.stopped.tolist() == [text[-1] in stops for text in expected]
    for cap in (1, 2, 3, 5):
        assert responses(written(model, settings_of(max_new_tokens=cap))) == [text[:cap] for text in free]


def test_rows_of_many_kinds_and_late_ones_share_a_batch() -> None:
    """Else a request's text would depend on what else is being written, or came before it, or was cancelled."""
    model, kinds = drafting(), ("verified", "verified:1", "sequential")
    choices = [settings_of(decoding, **choice) for choice in SAMPLED for decoding in kinds]
    requests = [continuations([PROMPTS[i % 6]], one)[0] for i, one in enumerate(choices)]
    alone = [responses(Engine(model, ENDLESS, 1).write([request]))[0] for request in requests]
    engine, found = Engine(model, ENDLESS, 4), {}

    def step() -> None:
        for event in engine.step():
            assert isinstance(event, Completion)
            found[event.request] = responses(event.rollout)[0]

    for number, request in enumerate(requests):
        assert engine.add(request) == number
        if number % 3 == 0:
            step()
    engine.cancel(7)
    while not engine.idle:
        step()
    assert found == {number: text for number, text in enumerate(alone) if number != 7}


def test_typical_accepts_more_and_never_less_than_the_threshold() -> None:
    """Else the dial would do nothing, or a draft that the AR model finds improbable would be taken."""
    model = drafting(change=0.0)
    exact = written(model, settings_of())
    loose = written(model, settings_of({"kind": "typical", "least": 0.001}))
    assert int(loose.forwards.sum()) < int(exact.forwards.sum())
    assert loose.confidence is not None
    inside = loose.commit_step >= 0
    assert (loose.confidence[inside & (loose.commit_step < 32_000)] >= 0).all()
    strict = written(model, settings_of({"kind": "typical", "least": 1.0}))
    assert responses(strict) == responses(exact)


def test_gate_off_is_the_original_and_the_base_keeps_its_bytes() -> None:
    """Clean tokens go through the original weights alone."""
    model, plain = drafting(), tiny_model()
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, dict(plain.named_parameters())[name])
        assert not parameter.requires_grad
    ids = torch.tensor([PROMPTS[3]])
    assert torch.equal(model.causal_hidden(ids), plain.base_model(input_ids=ids, use_cache=False).last_hidden_state)


def test_windows_behind_the_last_draft_alone_and_by_the_clock() -> None:
    """Fewer windows cost forwards, never text; and what the clock chooses changes nothing but the speed."""
    model = drafting()
    expected = original(model)
    every = written(model, settings_of())
    for decoding in ({"kind": "verified", "every": False}, {"kind": "verified", "every": False, "drafts": 2}):
        last = written(model, settings_of(decoding))
        assert responses(last) == expected
        assert (every.forwards <= last.forwards).all()
    for rows in (1, 3, 32):
        assert responses(written(model, settings_of("verified:auto"), batch_size=rows)) == expected


def test_the_pace_follows_what_it_measures() -> None:
    """Else `auto` would keep windows that cost more than they bring, or give up those that pay."""
    cheap, dear, useless = Pace(7), Pace(7), Pace(7)
    for forward in range(200):
        tokens = (1, 16, 64)[forward % 3]
        cheap.saw(tokens, 0.01 + 1e-6 * tokens, [7], [6])
        dear.saw(tokens, 1e-3 * tokens, [7], [6])
        useless.saw(tokens, 0.01 + 1e-4 * tokens, [7], [0])
    for pace in (dear, useless):
        assert pace.choose(1, 64) == WindowShape(7, False), "it has not learnt for a while"
    assert cheap.choose(1, 64) == WindowShape(7, True)
    assert dear.choose(1, 64) == WindowShape(0, False)
    assert useless.choose(1, 64).size == 0
    assert cheap.choose(1, 3).size <= 3
    assert cheap.rate(1, WindowShape(7, True)) > cheap.rate(1, WindowShape(7, False))


def test_learning_costs_little_time() -> None:
    """Else many rows would be slower than without drafts, by the forwards that find out that drafts do not pay."""
    pace, spent = Pace(7), {True: 0.0, False: 0.0}
    for _ in range(2000):
        shape = pace.choose(32, 7)
        seconds = 1e-3 + 1e-4 * 32 * shape.tokens()
        spent[shape.size > 0] += seconds
        pace.saw(32 * shape.tokens(), seconds, [shape.size] * 32, [min(1, shape.size)] * 32)
    assert 0 < spent[True] < 0.05 * spent[False]


def test_neither_prompts_nor_a_dear_second_token_mislead() -> None:
    """Else drafts that hold too seldom would be made for ever: after long prompts a few more tokens look free, and by a
    line through all forwards the first token looks as dear as those that follow it."""
    known = {1: 71, 2: 103, 3: 106, 4: 107, 5: 111, 9: 139, 25: 230, 64: 330}  # milliseconds of a forward
    pace, generator, chosen = Pace(4), random.Random(0), list[WindowShape]()
    for _ in range(40):
        written, drafted, prompt = 0, 0, 60
        while written < 32:
            shape = pace.choose(1, 4)
            chosen.append(shape)
            tokens = 1 + prompt + drafted + shape.size * (drafted + 1 if shape.every else 1)
            seconds = (
                known[min(known, key=lambda near: (abs(near - tokens), near))] * generator.uniform(0.95, 1.1) / 1000
            )
            held = sum(1 for _ in itertools.takewhile(lambda _: generator.random() < 0.32, range(drafted)))
            pace.saw(None if prompt else tokens, seconds, [drafted], [held])
            drafted = shape.size if shape.every or held == drafted else 0
            written, prompt = written + held + 1, 0
    assert chosen.count(WindowShape(0, False)) > 0.8 * len(chosen)


def test_a_compilation_is_forgotten() -> None:
    """Else the first forwards of a compiled model would make every later one look dear, and many drafts cheap."""
    pace = Pace(7)
    for forward in range(20):
        shape = pace.choose(32, 7)
        pace.saw(32 * shape.tokens(), 20.0 if forward < 2 else 1e-4 * 32 * shape.tokens(), [shape.size] * 32, [0] * 32)
    assert pace.choose(32, 7) == WindowShape(0, False)


def test_typical_text_does_not_depend_on_the_batch() -> None:
    """Its text depends on its drafts, so these must not depend on what else is written."""
    model = drafting(change=0.3)
    loose = settings_of({"kind": "typical", "least": 0.001})
    alone = responses(written(model, loose, batch_size=1))
    assert alone != original(model)
    requests = continuations(PROMPTS, loose)
    others = continuations(PROMPTS, settings_of("verified:1"))
    mixed = Engine(model, ENDLESS, 4).write([one for pair in zip(requests, others, strict=True) for one in pair])
    assert responses(mixed)[::2] == alone
