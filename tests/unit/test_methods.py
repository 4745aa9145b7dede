"""The method and its controls: each writes, masks and compares as it is named; the trainer takes any."""

from typing import get_args

import pytest
import torch

from opdlm.config import DistillSettings
from opdlm.config.distill import Method as MethodName
from opdlm.core.states import StateChoice, select_states
from opdlm.distill.loop import Trainer
from opdlm.distill.methods import METHODS, in_turn, method_of
from opdlm.distill.pair import Pair
from opdlm.distill.step import Batch, Plan
from rollouts import fresh_student, pair_of, random_prompts
from support import MASK


def settings_of(**changes: object) -> DistillSettings:
    common = {"prompts_per_rollout": 4, "rows_per_update": 4, "rollout_temperature": 0.0}
    ramp = {"start": 8, "end": 8, "rollouts": 0}
    return DistillSettings(**(common | {"response_length": ramp} | changes))  # type: ignore[arg-type]


def test_every_name_has_a_function() -> None:
    """Else a method that the settings allow would end in a KeyError after the model is loaded."""
    assert set(METHODS) == set(get_args(MethodName))


@pytest.mark.parametrize(
    ("changes", "selection", "bound", "by_student", "teaches"),
    [
        ({"method": "opd"}, "one_per_block", False, True, True),
        ({"method": "opd", "states": "all"}, "all", False, True, True),
        ({"method": "onpolicy_text"}, "random_mask", False, True, True),
        ({"method": "offpolicy_kd"}, "random_mask", False, False, True),
        ({"method": "sft"}, "random_mask", True, False, False),
        ({"method": "opd", "warm_start_rollouts": 1}, "random_mask", False, False, True),
        ({"method": "onpolicy_text", "warm_start_rollouts": 1}, "random_mask", False, False, True),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_each_method_is_what_it_is_named(
    changes: dict, selection: str, bound: bool, by_student: bool, teaches: bool
) -> None:
    """Else a control would differ from the method in more than its name says, or in less."""
    settings, pair = settings_of(**changes), pair_of(fresh_student())
    plan = method_of(settings)(pair, 0)
    batch = Batch(random_prompts((3, 5, 4, 6)), range(4))
    text = plan.write(batch).rollout
    seeds = torch.arange(4)
    choice = StateChoice(selection, bound_weight=bound)  # type: ignore[arg-type]
    expected = select_states(text, pair.student.geometry, choice, seeds, mask_token_id=MASK)
    states = plan.states(text, seeds)
    assert torch.equal(states.input_ids, expected.input_ids)
    assert torch.equal(states.weight, expected.weight)
    student_text = METHODS["opd"](settings_of(), pair, 0).write(batch).rollout
    teacher_text = METHODS["offpolicy_kd"](settings_of(), pair, 0).write(batch).rollout
    assert not torch.equal(student_text.input_ids, teacher_text.input_ids)
    assert torch.equal(text.input_ids, (student_text if by_student else teacher_text).input_ids)
    assert (plan.targets(text) is not None) == teaches


def test_given_responses_are_taken_as_they_are() -> None:
    """Else `sft` on ground truth would train on other text than the file's, or on text behind the cap."""
    plan = method_of(settings_of(method="sft"))(pair_of(fresh_student()), 0)
    written = plan.write(Batch([[7, 8], [9]], [0, 1], responses=[[10, 11, 2], list(range(20, 40))]))
    assert written.query_tokens == 0
    assert written.rollout.input_ids[0, :5].tolist() == [7, 8, 10, 11, 2]
    assert (written.rollout.length - written.rollout.prompt_length).tolist() == [3, 8]


def test_methods_take_turns() -> None:
    """Else a mix would need a trainer of its own; the turn is the rollout's number, so that a resumed run agrees."""
    pair, asked = pair_of(fresh_student()), []

    def named(name: str, **changes: object):
        method = method_of(settings_of(**changes))

        def noted(pair: Pair, index: int) -> Plan:
            asked.append((name, index))
            return method(pair, index)

        return noted

    mix = in_turn(named("opd"), named("sft", method="sft"), named("text", method="onpolicy_text"))
    Trainer(pair, random_prompts((3, 5, 4, 6)), settings_of(rollouts=4), method=mix).train()
    assert asked == [("opd", 0), ("sft", 1), ("text", 2), ("opd", 3)]


def test_the_logged_rate_is_the_one_that_was_used() -> None:
    """Else the learning-rate curve would be one update ahead of the losses beside it."""
    optimiser = {"learning_rate": 1e-3, "final_learning_rate": 1e-4, "warmup_updates": 0}
    logged = []
    settings = settings_of(rollouts=3, optimiser=optimiser)
    Trainer(pair_of(fresh_student()), random_prompts((3, 5, 4, 6)), settings, on_step=logged.append).train()
    assert [metrics.learning_rate for metrics in logged] == pytest.approx([1e-3, 5.5e-4, 1e-4])
    assert [metrics.updates for metrics in logged] == [1, 2, 3]
