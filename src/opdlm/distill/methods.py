"""The method and its controls: who writes, which states are trained on, and by which loss. One function each.

A method says how the training step number `index` is done. METHODS holds those that settings can name; `in_turn` makes
a mix of several.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from opdlm.config import DistillSettings, GenerationSettings
from opdlm.core.schedules import response_length
from opdlm.core.states import StateChoice, select_states
from opdlm.core.types import Rollout, StateBatch, TeacherTargets
from opdlm.core.windows import WindowChoice, select_windows
from opdlm.distill import losses, rollout
from opdlm.distill.pair import Pair
from opdlm.distill.rollout import Written
from opdlm.distill.step import Batch, Plan
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.sampling.request import Request
from opdlm.sampling.requests import continuations


class Method(Protocol):
    """How the training step number `index` (from 0) is done."""

    def __call__(self, pair: Pair, index: int) -> Plan: ...


def opd(settings: DistillSettings, pair: Pair, index: int) -> Plan:
    """On-policy distillation: the student's own text, the states that it visited, the teacher's opinion of them."""
    if index < settings.warm_start_rollouts:
        return offpolicy_kd(settings, pair, index)
    choice = StateChoice(settings.states, settings.supervise_end, clean_weight=settings.clean_weight)
    return _distilled(settings, pair, partial(_by_student, settings, pair, index), pair.student, choice)


def onpolicy_text(settings: DistillSettings, pair: Pair, index: int) -> Plan:
    """The student's own text, with random masks in place of visited states (the paper's OPDLM_off)."""
    if index < settings.warm_start_rollouts:
        return offpolicy_kd(settings, pair, index)
    choice = StateChoice("random_mask", settings.supervise_end, clean_weight=settings.clean_weight)
    return _distilled(settings, pair, partial(_by_student, settings, pair, index), pair.student, choice)


def offpolicy_kd(settings: DistillSettings, pair: Pair, index: int) -> Plan:
    """The teacher's text with random masks; also the warm start of the two methods above."""
    choice = StateChoice("random_mask", settings.supervise_end, clean_weight=settings.clean_weight)
    return _distilled(settings, pair, partial(_by_teacher, settings, pair, index), pair.teacher.model, choice)


def sft(settings: DistillSettings, pair: Pair, index: int) -> Plan:
    """Cross-entropy on given responses, or on the teacher's, with random masks: the BD3-LM objective."""

    def write(batch: Batch) -> Written:
        if batch.responses is None:
            return _by_teacher(settings, pair, index, batch)
        cap = _longest_response(settings, index)
        text = rollout.given(batch.prompts, batch.responses, pair.tokens, settings.block_size, cap)
        return Written(text.to(pair.student.device), 0)

    choice = StateChoice("random_mask", settings.supervise_end, bound_weight=True)
    loss = partial(losses.cross_entropy_loss, pair)
    return Plan(write, _states(pair, choice), targets=lambda text: None, loss=loss, writer=pair.teacher.model)


def lossless(settings: DistillSettings, pair: Pair, index: int) -> Plan:
    """A drafting model learns to draft: the AR model's own text, written by verified decoding, and windows in it."""
    assert isinstance(pair.student, DraftingModel)
    gate = pair.student.gate
    vocabulary = pair.student.head_parameters()[0].shape[0] if gate.form == "noise" else 0
    choice = WindowChoice(pair.student.window, settings.anchors, vocabulary, settings.supervise_end)
    return Plan(
        write=partial(_by_student, settings, pair, index),
        states=lambda text, seed: select_windows(text, choice, seed),
        targets=pair.teacher.clean_pass,
        loss=partial(losses.window_loss, pair, losses.log_divergence(settings)),
        writer=pair.student,
    )


METHODS: dict[str, Callable[[DistillSettings, Pair, int], Plan]] = {
    "opd": opd,
    "onpolicy_text": onpolicy_text,
    "offpolicy_kd": offpolicy_kd,
    "sft": sft,
    "lossless": lossless,
}


def method_of(settings: DistillSettings) -> Method:
    """The method that the settings name."""
    return partial(METHODS[settings.method], settings)


def in_turn(*methods: Method) -> Method:
    """One after the other, again and again."""
    return lambda pair, index: methods[index % len(methods)](pair, index)


# --- parts --------------------------------------------------------------------------------------------------------


def _distilled(
    settings: DistillSettings,
    pair: Pair,
    write: Callable[[Batch], Written],
    writer: BlockDiffusionModel,
    choice: StateChoice,
) -> Plan:
    """KL, or another divergence, from the teacher's distributions."""
    targets: Callable[..., TeacherTargets | None] = pair.teacher.targets
    loss = partial(losses.divergence_loss, pair, losses.log_divergence(settings))
    return Plan(write, _states(pair, choice), targets=targets, loss=loss, writer=writer)


def _states(pair: Pair, choice: StateChoice) -> Callable[[Rollout, torch.Tensor], StateBatch]:
    """The chosen states of a text's blocks."""
    student = pair.student

    def select(text: Rollout, seed: torch.Tensor) -> StateBatch:
        capacity = student.packing_capacity
        return select_states(
            text, student.geometry, choice, seed, mask_token_id=student.mask_token_id, capacity=capacity
        )

    return select


def _by_student(settings: DistillSettings, pair: Pair, index: int, batch: Batch) -> Written:
    requests = _requests(settings, index, batch)
    if pair.worker is not None:
        return pair.worker.write(requests, pair.student.device)
    return rollout.written_by_student(pair.student, pair.tokens, requests, settings.rollout_batch)


def _by_teacher(settings: DistillSettings, pair: Pair, index: int, batch: Batch) -> Written:
    requests, teacher = _requests(settings, index, batch), pair.teacher
    with teacher.frozen():
        return rollout.written_by_teacher(
            teacher.model, pair.tokens, requests, settings.rollout_batch, settings.block_size
        )


def _requests(settings: DistillSettings, index: int, batch: Batch) -> list[Request]:
    generation = GenerationSettings(
        decoding=settings.rollout_decoding,
        max_new_tokens=_longest_response(settings, index),
        temperature=settings.rollout_temperature,
        hold_end=settings.rollout_hold_end,
    )
    return continuations(batch.prompts, generation, batch.seeds)


def _longest_response(settings: DistillSettings, index: int) -> int:
    ramp = settings.response_length
    return response_length(index, ramp.start, ramp.end, ramp.rollouts, ramp.shape, settings.block_size)
