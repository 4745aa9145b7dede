"""What a run is worth: the measure, and what is said of it."""

from dataclasses import replace

import pytest
import torch

from opdlm.config import GenerationSettings
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.distill.validation import Validator, agreed
from opdlm.records.worth import Validation, Worth
from rollouts import TOKENS, pair_of, random_prompts, student, written


@pytest.mark.parametrize("prediction", ["same", "shifted"])
def test_agreement_is_the_share_of_the_teachers_choices_foreseen(prediction: str) -> None:
    """Else the number could compare positions that do not belong together, or see the tokens that it must foresee."""
    model = student(prediction=prediction, context="causal")
    pair = pair_of(model)
    rollout, _ = written(model)
    expected = 0
    for row in range(len(rollout.length)):
        begin, end = int(rollout.prompt_length[row]), int(rollout.length[row])
        ids = rollout.input_ids[row, :end]
        teacher = pair.teacher.model
        expect = teacher.logits(teacher.causal_hidden(ids[None]))[0].argmax(-1)
        for position in range(begin, end):
            block = max(begin, position // 4 * 4)
            width = (position // 4 + 1) * 4 - block
            seen = torch.cat([ids[:block], torch.full((width,), model.mask_token_id)])
            outputs = model.logits(model.model.base_model(seen[None], attention_mask=_mask(seen, 4)).last_hidden_state)
            at = position if prediction == "same" else position - 1
            expected += int(outputs[0, at].argmax() == expect[position - 1])
    assert 0 < expected < int((rollout.length - rollout.prompt_length).sum())
    with torch.no_grad():
        assert agreed(pair, rollout) == expected


def _mask(ids: torch.Tensor, size: int) -> torch.Tensor:
    """Causal, and both ways within the last block, as a noised block sees its context."""
    columns = torch.arange(len(ids))
    last = columns // size == int(columns[-1]) // size
    noised = last & (ids == TOKENS.mask_token_id)
    visible = (columns[None] <= columns[:, None]) | (noised[:, None] & last[None])
    return torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~visible, torch.finfo(torch.float32).min)


def test_a_student_of_one_token_a_block_agrees_with_itself() -> None:
    """Else a perfect student would not have 100 %: a block of one token, shifted, is the AR model itself."""
    model = student(1, "shifted", "causal")
    pair = Pair.of(model, Teacher(model), TOKENS)
    found = Validator(random_prompts(), GenerationSettings(max_new_tokens=7, decoding="static"), 2)(pair)
    assert found.agreement == 1
    assert found.responses == 5
    assert found.tokens == found.forwards > 5


def test_empty_and_short_responses_are_counted() -> None:
    """Else a student that only ever stops would look like one that writes."""
    model = student()
    settings = GenerationSettings(max_new_tokens=8)
    silent = replace(TOKENS, stop_token_ids=tuple(range(97)))
    found = Validator(random_prompts(), settings, 3)(Pair.of(model, pair_of(model).teacher, silent))
    assert (found.empty, found.short, found.tokens) == (5, 5, 5)
    endless = replace(TOKENS, stop_token_ids=())
    found = Validator(random_prompts(), settings, 3)(Pair.of(model, pair_of(model).teacher, endless))
    assert (found.empty, found.short, found.tokens) == (0, 0, 40)


def test_validation_draws_no_random_number() -> None:
    """Else a run that is validated would end in other weights than one that is not."""
    model, before = student(), torch.random.get_rng_state()
    Validator(random_prompts(), GenerationSettings(max_new_tokens=8), 3)(pair_of(model))
    assert torch.equal(torch.random.get_rng_state(), before)


def validation(agreed: int, empty: int = 0) -> Validation:
    return Validation(responses=10, empty=empty, short=empty, tokens=100, agreed=agreed, forwards=50)


@pytest.mark.parametrize(
    ("worth", "expected"),
    [
        (Worth(held_out=True, updates=500, before=validation(10), after=validation(60)), []),
        (Worth(held_out=True, updates=1, before=validation(10), after=validation(11)), ["1 update"]),
        (Worth(held_out=True, updates=500, before=validation(10), after=validation(10)), ["no more than before"]),
        (Worth(held_out=True, updates=500, before=validation(10), after=validation(60, 6)), ["stop at once"]),
        (Worth(held_out=True, updates=500, after=validation(60)), []),
        (Worth(held_out=True, updates=500), []),
    ],
    ids=["sound", "too few", "did not rise", "empty", "resumed", "not measured"],
)
def test_hints(worth: Worth, expected: list[str]) -> None:
    """Else a run of one update would be handed over like a good one, or a good one be called bad."""
    found = worth.hints()
    assert len(found) == len(expected)
    assert all(part in hint for part, hint in zip(expected, found, strict=True))
    assert Worth.from_json(worth.to_json(), "here") == worth


def test_facts_say_where_the_numbers_come_from() -> None:
    """Else agreement on the training's own prompts would be taken for one on new ones."""
    facts = Worth(held_out=False, updates=3, before=validation(10), after=validation(60, 2)).facts()
    assert facts["agreement with the teacher"] == "10% before training, 60% after, on 10 prompts of the training"
    assert facts["empty responses"] == "2 of 10 (shorter than 4 tokens: 2)"
