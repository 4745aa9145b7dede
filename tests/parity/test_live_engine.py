"""Requests that come, are cancelled and go while others are written: nobody's tokens depend on anybody else's."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opdlm.config import GenerationSettings
from opdlm.core.types import Rollout
from opdlm.errors import ContextLengthError, UsageError
from opdlm.models.cache import KVCache
from opdlm.sampling.engine import Completion, Draft, Engine
from opdlm.sampling.request import Request
from opdlm.sampling.requests import continuations, fillings
from opdlm.sampling.slots import Slots
from opdlm.sampling.state import stack
from rollouts import TOKENS, random_prompts, student
from sampling_support import BIAS, CHOICES, NEVER_STOPS, assert_same_row, generated, settings_of
from support import MASK, tiny_tokenizer

TOKENIZER = tiny_tokenizer(mask=True)
OWN = [*CHOICES, {"decoding": "dynamic:0.3", "stop_strings": ("a", "e", "3")}, {"temperature": 2.0, "logit_bias": BIAS}]
SHARED = random_prompts((9,), seed=4)[0]


@dataclass(frozen=True)
class Arrival:
    """A request, the step before which it comes, and the step before which it is cancelled, if it is."""

    request: Request
    comes: int
    goes: int | None


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    choice = draw(st.sampled_from(OWN))
    limit, seed = draw(st.integers(1, 14)), draw(st.integers(0, 1000))
    length = draw(st.integers(1, 11))
    prompt = random_prompts((length,), seed=draw(st.integers(0, 50)))[0]
    prompt = [*SHARED, *prompt[:3]] if draw(st.booleans()) else prompt
    comes = draw(st.integers(0, 12))
    goes = draw(st.one_of(st.none(), st.integers(comes, 25)))
    if draw(st.integers(0, 5)) == 0:
        gaps = [MASK if i % 3 == 2 else token for i, token in enumerate([*prompt, 7, 8, 9])]
        request = fillings([gaps], settings_of(choice), MASK, 4, [seed])[0]
    else:
        request = continuations([prompt], settings_of(choice, max_new_tokens=limit), [seed])[0]
    return Arrival(request, comes, goes)


def written_alone(request: Request) -> Rollout:
    return Engine(student(), TOKENS, 1, TOKENIZER).write([request])


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(arrivals(), min_size=1, max_size=7), st.integers(1, 4))
def test_nobody_elses_coming_and_going_changes_a_text(visitors: list[Arrival], batch_size: int) -> None:
    """Else a served text would depend on the traffic: on who arrives, with which settings, and on who hangs up."""
    engine = Engine(student(), TOKENS, batch_size, TOKENIZER)
    numbers: dict[int, Arrival] = {}
    finished: dict[int, Rollout] = {}
    cancelled: set[int] = set()
    step = 0
    while step <= max(one.comes for one in visitors) or not engine.idle:
        for one in visitors:
            if one.comes == step:
                numbers[engine.add(one.request)] = one
        for number, one in numbers.items():
            if one.goes == step and engine.cancel(number):
                cancelled.add(number)
        for event in engine.step():
            assert isinstance(event, Completion), "nobody is watched"
            assert event.request not in cancelled | finished.keys()
            finished[event.request] = stack([event.rollout], TOKENS.pad_token_id)
        step += 1
    assert finished.keys() | cancelled == numbers.keys()
    for number, rollout in finished.items():
        assert_same_row(rollout, 0, written_alone(numbers[number].request))


def test_rows_with_other_settings_share_a_batch() -> None:
    """Else requests with other settings would have to wait for each other, or get each other's."""
    prompts = random_prompts([1 + 5 * i % 9 for i in range(len(OWN))])
    requests = [
        continuations([prompt], settings_of(choice, max_new_tokens=13), [row])[0]
        for row, (prompt, choice) in enumerate(zip(prompts, OWN, strict=True))
    ]
    together = Engine(student(), TOKENS, 32, TOKENIZER).write(requests)
    for row, request in enumerate(requests):
        assert_same_row(together, row, written_alone(request))


def test_slots_and_cache_grow_and_are_used_again() -> None:
    """Else an engine that has served short texts could not take a long one, or would keep its largest batch."""
    engine = Engine(student(), TOKENS, 3)
    requests = continuations(random_prompts((1, 2, 60, 3, 4)), GenerationSettings(max_new_tokens=8), [5, 6, 7, 8, 9])
    engine.add(requests[0])
    engine.step()
    assert len(engine._slots.held) == 1
    assert engine._slots.cache.length < 60
    found = dict(engine.finished([])) if engine.idle else {}
    numbers = [engine.add(request) for request in requests[1:]]
    while not engine.idle:
        for event in engine.step():
            assert isinstance(event, Completion)
            found[event.request] = stack([event.rollout], 0)
        assert len(engine._slots.held) <= 3
    assert engine._slots.cache.length >= 68
    for number, request in zip([0, *numbers], requests, strict=True):
        assert_same_row(found[number], 0, written_alone(request))
    engine.step()
    assert len(engine._slots.held) == 0, "an idle engine holds no rows"


def test_a_watched_request_reports_each_draft() -> None:
    """Else a server could not stream: a draft when it is admitted and after each step, for the watched one alone."""
    model = student()
    quiet, watched = (
        continuations([prompt], GenerationSettings(max_new_tokens=9), watched=shown)[0]
        for prompt, shown in zip(random_prompts((3, 6)), (False, True), strict=True)
    )
    engine = Engine(model, TOKENS, 2)
    engine.add(quiet)
    number = engine.add(watched)
    drafts, rollout = [], None
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Draft):
                assert event.request == number
                drafts.append(event.input_ids)
            elif event.request == number:
                rollout = event.rollout
    assert rollout is not None
    assert len(drafts) == int(rollout.forwards)
    for before, after in zip(drafts, [*drafts[1:], rollout.input_ids[0]], strict=True):
        known = before != MASK
        assert torch.equal(before[known], after[: len(before)][known]), "what is committed stays"
        assert len(after) > len(before) or (after[: len(before)] != MASK).sum() > known.sum(), "each step commits"


def test_what_cannot_be_written_is_refused_before_it_waits() -> None:
    """Else a bad request would stop the engine for all others, some steps later."""
    engine = Engine(student(), TOKENS, 2)
    good = continuations([[7, 8]], GenerationSettings(max_new_tokens=4))[0]
    engine.add(good)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"logit_bias": {MASK + 1: 1.0}}, "from 0 to"),
        ({"stop_strings": ("a",)}, "need the tokenizer"),
    ]
    for settings_, message in bad:
        with pytest.raises(UsageError, match=message):
            engine.add(continuations([[7, 8]], GenerationSettings(max_new_tokens=4, **settings_))[0])
    with pytest.raises(UsageError, match="no token"):
        engine.add(continuations([[]], GenerationSettings(max_new_tokens=4))[0])
    with pytest.raises(RuntimeError, match="busy"):
        engine.write([good])
    assert not engine.cancel(99)
    (done,) = (event for _ in range(9) for event in engine.step())
    assert isinstance(done, Completion)
    expected = generated(student(), TOKENS, GenerationSettings(max_new_tokens=4), [[7, 8]])
    assert_same_row(stack([done.rollout], 0), 0, expected)


def finished_texts(engine: Engine) -> dict[int, Rollout]:
    """Everything that is still to be written."""
    found = {}
    while not engine.idle:
        for event in engine.step():
            assert isinstance(event, Completion)
            found[event.request] = stack([event.rollout], 0)
    return found


def endless(prompt: list[int], tokens: int, seed: int = 0) -> Request:
    return continuations([prompt], GenerationSettings(decoding="static", max_new_tokens=tokens), [seed])[0]


def test_a_cancelled_row_is_gone_while_others_go_on() -> None:
    """Else it would be written to its end for nobody, and handed out, or keep its slot from those who wait."""
    short, long, late = endless([7, 8, 9], 6), endless([9, 8, 7, 6, 5], 30), endless([11, 12], 9)
    engine = Engine(student(), NEVER_STOPS, 2)
    first, second = engine.add(short), engine.add(long)
    engine.step()
    engine.step()
    assert engine.cancel(first)
    assert not engine.cancel(first)
    third = engine.add(late)
    found = finished_texts(engine)
    assert found.keys() == {second, third}
    for number, request in ((second, long), (third, late)):
        assert_same_row(found[number], 0, Engine(student(), NEVER_STOPS, 1).write([request]))
    crowd = Engine(student(), NEVER_STOPS, 6)  # one idle slot of six is kept, so the row is still in the batch
    others = [crowd.add(long) for _ in range(5)]
    last = crowd.add(short)
    crowd.step()
    assert crowd.cancel(last)
    assert finished_texts(crowd).keys() == set(others), "nobody takes its slot, and it is not handed out"


def test_a_slot_that_lost_the_shared_prefix_computes_it_again() -> None:
    """Else a request would continue another text: whoever shares no prefix overwrites that of the burst."""
    sharing = [endless([*SHARED, 11 + i], tokens, i) for i, tokens in enumerate((3, 40, 5))]
    stranger = endless(random_prompts((12,), seed=9)[0], 4, 7)
    engine = Engine(student(), NEVER_STOPS, 2)
    numbers = [engine.add(sharing[0]), engine.add(sharing[1])]
    engine.step()
    assert engine._slots.prefix is not None
    assert len(engine._slots.prefix.ids) == 8
    numbers += [engine.add(stranger), engine.add(sharing[2])]
    found = finished_texts(engine)
    for number, request in zip(numbers, [*sharing[:2], stranger, sharing[2]], strict=True):
        assert_same_row(found[number], 0, Engine(student(), NEVER_STOPS, 1).write([request]))


def test_a_slot_forgets_the_bias_of_its_last_request() -> None:
    """Else a plain request would get the bias of whoever had its slot before, while another biased one is written."""
    biased = {"decoding": "static", "logit_bias": {7: 6.0}}
    short, long = (
        continuations([prompt], settings_of(biased, max_new_tokens=tokens))[0]
        for prompt, tokens in (([8, 9], 3), ([9, 8, 7], 40))
    )
    plain = endless([11, 12, 13], 12)
    engine = Engine(student(), NEVER_STOPS, 2)
    engine.add(short)
    engine.add(long)
    number = engine.add(plain)
    assert_same_row(finished_texts(engine)[number], 0, Engine(student(), NEVER_STOPS, 1).write([plain]))


def test_a_start_that_fails_is_tried_again_and_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else memory that is short for a moment would give the newcomers wrong texts, or lose them without a word."""
    running, newcomers = endless([9, 8, 7], 20), [endless(random_prompts((9,), seed=s)[0], 6, s) for s in (1, 2)]
    engine = Engine(student(), NEVER_STOPS, 3)
    numbers = [engine.add(running)]
    engine.step()
    numbers += [engine.add(request) for request in newcomers]
    with monkeypatch.context() as patched:
        patched.setattr(Slots, "_prefill", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                engine.step()
    found = finished_texts(engine)
    for number, request in zip(numbers, [running, *newcomers], strict=True):
        assert_same_row(found[number], 0, Engine(student(), NEVER_STOPS, 1).write([request]))


@pytest.mark.parametrize("failing", range(8))
def test_memory_that_ends_while_the_cache_grows_changes_nothing(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else half of the layers would have grown, and every later step would fail or read another row's past."""
    running, wide = endless([9, 8, 7], 20), endless(random_prompts((9,), seed=1)[0], 60, 1)
    engine = Engine(student(), NEVER_STOPS, 3)
    numbers = [engine.add(running)]
    engine.step()
    numbers.append(engine.add(wide))
    calls, larger = iter(range(1000)), KVCache._larger

    def short(cache: KVCache, *args: Any) -> torch.Tensor:
        if next(calls) == failing:  # one more row first, four buffers, and then the columns
            raise RuntimeError("out of memory")
        return larger(cache, *args)

    with monkeypatch.context() as patched:
        patched.setattr(KVCache, "_larger", short)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
    found = finished_texts(engine)
    for number, request in zip(numbers, [running, wide], strict=True):
        assert_same_row(found[number], 0, Engine(student(), NEVER_STOPS, 1).write([request]))


def test_a_text_longer_than_the_context_is_refused_at_once() -> None:
    """Else it would be allocated, and the model read positions that it was never trained for."""
    engine = Engine(student(), NEVER_STOPS, 2)
    for new in (253, 10**15):
        with pytest.raises(ContextLengthError, match=f"{new} new ones.* 256"):
            engine.add(replace(endless([7, 8, 9, 10], 9), end=4 + new))
    assert engine.idle


def test_a_list_with_a_bad_request_leaves_the_engine_free() -> None:
    """Else one mistake, or a reader who stops early, would block the engine for good."""
    engine = Engine(student(), NEVER_STOPS, 2)
    good, bad = endless([7, 8], 4), endless([7, MASK + 5], 4)
    with pytest.raises(UsageError, match="does not exist"):
        engine.write([good, bad])
    assert engine.idle
    for _ in engine.finished([good, endless([9], 30)]):
        break
    assert engine.idle
    assert_same_row(engine.write([good]), 0, Engine(student(), NEVER_STOPS, 1).write([good]))
    with pytest.raises(UsageError, match="nothing to write"):
        engine.write([])
    with pytest.raises(UsageError, match="at least 1"):
        Engine(student(), NEVER_STOPS, 0)
