"""Checked decoding writes what the student writes from left to right, in no more forwards than tokens."""

import copy
import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lossless import ENDLESS, drafting, responses
from opdlm.checkpoints.save import save_checkpoint
from opdlm.config import DistillSettings, GenerationSettings, settings_from
from opdlm.core.layout import AUTOREGRESSIVE, Attention
from opdlm.core.propose import Controls, present, propose, race
from opdlm.core.types import Geometry, Rollout
from opdlm.errors import ConfigError, UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.pace import Pace, WindowShape
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Completion, Engine
from opdlm.sampling.requests import continuations, fillings
from rollouts import random_prompts
from support import ARCHITECTURES, MASK, VOCABULARY, tiny_model, tiny_tokenizer

LENGTHS = (1, 2, 5, 8, 3, 11, 4)
PROMPTS = random_prompts(LENGTHS)
FREE = SpecialTokens(MASK, 0, ())
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.0, "repetition_penalty": 1.5},
    {"temperature": 0.0, "repetition_penalty": 2.0},
    {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7},
    {"temperature": 0.5, "logit_bias": {7: 2.5, 9: -3.0}},
]


def student(architecture: str = "llama", block_size: int = 4, **changes: Any) -> BlockDiffusionModel:
    model = tiny_model(architecture, **changes)
    return BlockDiffusionModel(model, Geometry(block_size, "shifted", "causal"), MASK)


def settings_of(decoding: Any = "checked", **changes: Any) -> GenerationSettings:
    return GenerationSettings.model_validate({"decoding": decoding, "max_new_tokens": 21} | changes)


def written(
    model: BlockDiffusionModel, settings: GenerationSettings, tokens: SpecialTokens = FREE, batch_size: int = 32
) -> Rollout:
    return Engine(model, tokens, batch_size).write(continuations(PROMPTS, settings))


@torch.no_grad()
def left_to_right(model: BlockDiffusionModel, settings: GenerationSettings) -> list[list[int]]:
    """The oracle: no cache, no drafts, the whole text again for each token, picked by the race at its position."""
    bias = torch.zeros(1, VOCABULARY)
    for token, value in settings.logit_bias.items():
        bias[0, token] = value
    controls = Controls(
        temperature=torch.tensor([settings.temperature]),
        top_k=torch.tensor([settings.top_k]) if settings.top_k else None,
        top_k_limit=settings.top_k,
        repetition_penalty=torch.tensor([settings.repetition_penalty]),
        presence_penalty=torch.tensor([settings.presence_penalty]),
        frequency_penalty=torch.tensor([settings.frequency_penalty]),
        bias=bias,
    )
    texts = []
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        for _ in range(settings.max_new_tokens):
            pick = partial(race, seed=torch.tensor([[settings.seed + row]]), position=torch.tensor([[ids.shape[1]]]))
            logits = model.logits(model.causal_hidden(ids)[:, -1:])
            times = ids[:, len(prompt) :, None].eq(torch.arange(VOCABULARY)).sum(1, keepdim=True).float()
            token = propose(logits, controls, pick, present(ids, VOCABULARY)[:, None], times).token
            ids = torch.cat([ids, token], 1)
        texts.append(ids[0, len(prompt) :].tolist())
    return texts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_text_is_that_of_blocks_of_one(architecture: str) -> None:
    """The promise: drafts cost or save forwards and change nothing, for every prompt length and batch size."""
    model = student(architecture)
    one = settings_of("sequential")
    expected = responses(written(model.at(AUTOREGRESSIVE), one))
    for batch_size in (1, 3, 32):
        rollout = written(model, settings_of(), batch_size=batch_size)
        assert responses(rollout) == expected
        assert (rollout.forwards <= 21).all()


@pytest.mark.parametrize("choice", SAMPLED)
@pytest.mark.parametrize("block_size", [1, 2, 4, 8])
def test_text_does_not_depend_on_the_drafts(choice: dict[str, Any], block_size: int) -> None:
    """Greedy or sampled, a token is the one that the student's own reading and the row's numbers give."""
    model = student(block_size=block_size)
    expected = left_to_right(model, settings_of(**choice))
    alone = written(model, settings_of("checked:0", **choice))
    assert responses(alone) == expected
    assert (alone.forwards == 21).all()
    for batch_size in (1, 3, 32):
        rollout = written(model, settings_of(**choice), batch_size=batch_size)
        assert responses(rollout) == expected
        assert (rollout.forwards <= 21).all()
    assert responses(written(model, settings_of("checked:2", **choice))) == expected


@pytest.mark.parametrize("choice", SAMPLED)
def test_drafts_by_the_clock_change_no_text(choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a text would depend on how busy the machine is: whatever windows a forward has, from step to step."""
    model, generator = student(), random.Random(0)
    expected = responses(written(model, settings_of("checked:0", **choice)))
    assert responses(written(model, settings_of("checked:auto", **choice))) == expected
    assert model.pace.choose(7, 64).width == 4
    sizes: list[int] = []

    def choose(self: Pace, rows: int, most: int) -> WindowShape:
        assert most == 3
        sizes.append(generator.randrange(4))
        return WindowShape(sizes[-1], generator.random() < 0.5, 4)

    monkeypatch.setattr(Pace, "choose", choose)
    for batch_size in (1, 3, 32):
        rollout = written(model, settings_of("checked:auto", **choice), batch_size=batch_size)
        assert responses(rollout) == expected
        assert (rollout.forwards <= 21).all()
    assert set(sizes) == {0, 1, 2, 3}


def test_one_window_behind_sure_drafts_writes_as_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the smaller forward would draft from another place than that of the last draft."""
    model, settings = student(), settings_of("checked:auto", logit_bias={7: 1000.0})
    monkeypatch.setattr(Pace, "choose", lambda self, rows, most: WindowShape(most, False, 4))
    every = written(model, settings_of(logit_bias={7: 1000.0}))
    assert written(model, settings).forwards.tolist() == every.forwards.tolist()


def test_the_pace_counts_whole_blocks_and_the_room_in_them() -> None:
    """Else drafts would look cheaper, and more likely to be there, than they are: a window is a block, whatever of it
    is still to be drafted."""
    pace = Pace(3, width=4, rooms=range(4))
    assert WindowShape(3, True, 4).tokens() == 4 + 4 * 4
    assert WindowShape(3, False, 4).tokens() == 4 + 4
    assert WindowShape(0, True, 4).tokens() == 1
    pace.offered, pace.held = [1.0] * 3, [1.0] * 3  # all hold
    assert pace.tokens(WindowShape(3, True, 4)) == (1 + 2 + 3 + 4) / 4
    assert pace.tokens(WindowShape(1, True, 4)) == (1 + 2 + 2 + 2) / 4
    for forward in range(100):  # a millisecond a token: a batch that is bound by arithmetic
        tokens = 32 * (1, 8, 20)[forward % 3]
        pace.saw(tokens, 1e-3 * tokens, [3] * 32, [1] * 32)
    pace.choose(32, 3)  # may be one to learn from
    assert pace.choose(32, 3).size == 0


@torch.no_grad()
def test_drafts_are_those_of_the_trained_geometry() -> None:
    """Else they would be drawn at states that the student never saw in training, and few would hold."""
    model = student(block_size=4)
    engine, seen = Engine(model, FREE, 1), 0
    for request in continuations(PROMPTS, settings_of()):
        engine.add(request)
        while not engine.idle:
            engine.step()
            state = engine._slots.state
            if engine.idle:
                break
            start, count = int(state.start[0]), int(state.drafted[0])
            text = state.ids[0, :start].tolist()
            anchor = start - 1  # the window is a forward old: it did not know the last token yet
            assert count == min(-start % 4, request.end - start)
            block = anchor // 4 * 4
            ids = torch.tensor([[*text[:anchor], *[MASK] * (block + 4 - anchor)]])
            position = torch.arange(block + 4)[None]
            attention = Attention.within(model.geometry, position, (position >= block).long())
            drafted = model.logits(model.hidden(ids, attention))[0, start - 1 : start - 1 + count].argmax(-1)
            assert state.ids[0, start : start + count].tolist() == drafted.tolist()
            seen += count
    assert seen > 50


@pytest.mark.parametrize("block_size", [2, 4, 8])
def test_a_sure_student_writes_a_block_a_forward(block_size: int) -> None:
    """Else drafts that hold would bring nothing: each forward adds its drafts and one token, up to a block's end."""
    rollout = written(student(block_size=block_size), settings_of(logit_bias={7: 1000.0}))
    for row, length in enumerate(LENGTHS):
        start, forwards, drafts = length, 0, 0
        while start < length + 21:
            start, forwards = start + drafts + 1, forwards + 1
            drafts = -start % block_size
        assert int(rollout.forwards[row]) == forwards
        assert forwards <= 21 / block_size + 3


def test_stop_tokens_and_the_length_cap() -> None:
    """Else text behind a stop token, or too much of it, would be handed out."""
    model = student()
    free = responses(written(model, settings_of()))
    stops = tuple({text[4] for text in free} | {free[0][9]})
    for batch_size in (1, 3):
        rollout = written(model, settings_of(), SpecialTokens(MASK, 0, stops), batch_size)
        for text, whole in zip(responses(rollout), free, strict=True):
            end = next(i for i, token in enumerate(whole) if token in stops)
            assert text == whole[: end + 1]
    for cap in (1, 2, 3, 5):
        assert responses(written(model, settings_of(max_new_tokens=cap))) == [text[:cap] for text in free]


def test_requests_of_both_ways_take_turns() -> None:
    """Else a request's text would depend on what else waits, or some would never be written."""
    model = student()
    kinds = ("checked", "prefix:0.05", "prefix:0.05", "checked:1", "checked", "sequential")
    requests = [
        continuations([PROMPTS[i % len(PROMPTS)]], settings_of(kinds[i % 6], temperature=i % 2, seed=i))[0]
        for i in range(18)
    ]
    alone = [responses(Engine(model, FREE, 1).write([request]))[0] for request in requests]
    assert responses(Engine(model, FREE, 2).write(requests)) == alone
    engine, found = Engine(model, FREE, 3), {}
    for number, request in enumerate(requests):
        assert engine.add(request) == number
        for event in engine.step():
            assert isinstance(event, Completion)
            found[event.request] = responses(event.rollout)[0]
    engine.cancel(16)
    spent = engine.query_tokens
    while not engine.idle:
        for event in engine.step():
            assert isinstance(event, Completion)
            found[event.request] = responses(event.rollout)[0]
        assert engine.query_tokens > spent
        spent = engine.query_tokens
    assert found == {number: text for number, text in enumerate(alone) if number != 16}


def test_what_is_refused() -> None:
    """Each with a line that says what to do instead."""
    model = tiny_model()
    for prediction, context in (("same", "block"), ("same", "causal"), ("shifted", "block")):
        other = BlockDiffusionModel(model, Geometry(4, prediction, context), MASK)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="--prediction shifted --context causal"):
            written(other, settings_of())
    with pytest.raises(UsageError, match="choose verified"):
        Engine(drafting(), ENDLESS).write(continuations(PROMPTS, settings_of()))
    gap = [1, 5, MASK, 7]
    with pytest.raises(UsageError, match="fills no gaps"):
        Engine(student(), FREE).write(fillings([gap], settings_of(), MASK, 4))
    with pytest.raises(ConfigError, match="rollouts by checked"):
        settings_from(DistillSettings, {"rollout_decoding": "checked"})
    with pytest.raises(ConfigError, match="prediction shifted and context causal"):
        settings_from(DistillSettings, {"decoding": "checked"})


def test_the_model_file_knows_it_too(tmp_path: Path) -> None:
    """Else a folder whose default it is would not decode where opdlm is not installed."""
    model, settings = student(), settings_of()
    save_checkpoint(model, tiny_tokenizer(mask=True), tmp_path / "model", generation=settings, provenance={})
    scope: dict[str, Any] = {"__name__": "modeling_opdlm", "__file__": str(tmp_path / "model" / "modeling_opdlm.py")}
    exec((tmp_path / "model" / "modeling_opdlm.py").read_text(), scope)
    plain = scope["BlockDiffusionForCausalLM"].from_pretrained(str(tmp_path / "model"))
    prompt = PROMPTS[3]
    made = plain.generate(torch.tensor([prompt]))[0, len(prompt) :].tolist()
    assert made == plain.generate(torch.tensor([prompt]), decoding="checked:1")[0, len(prompt) :].tolist()
    free = responses(written(model, settings_of()))[3]
    assert made == free[: len(made)]
    assert scope["_parsed"]("verified:auto") == {"kind": "verified", "drafts": 64, "every": True, "auto": True}


def test_a_model_can_be_copied_and_pickled() -> None:
    """Else the lock of its pace would stand in the way of a snapshot, or of another process."""
    model = student()
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert made.turn is not model.turn
        assert responses(written(made, settings_of())) == responses(written(model, settings_of()))
