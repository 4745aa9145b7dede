"""One run: a conversion of the embedded AR model as an arm says, examined on the way and at the end."""

import copy
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from opdlm.checkpoints.load import load_ar_model
from opdlm.config import DistillSettings, settings_from
from opdlm.core.types import Geometry
from opdlm.distill.loop import Trainer
from opdlm.distill.losses import log_divergence
from opdlm.distill.methods import Method, in_turn, method_of
from opdlm.distill.pair import Pair
from opdlm.distill.step import Plan
from opdlm.distill.teacher import Teacher
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens, encode_prompt, find_or_add_mask_token, special_tokens
from opdlm.records.metrics import StepMetrics
from opdlm.tiny.families import mixed
from opdlm.tiny.problems import Problem
from opdlm.tiny.weights import ar_model_path
from studies.exam import DECODINGS, MORE_DECODINGS, ON_THE_WAY, Exam, student_results, teacher_result
from studies.foreign import remarked, restyled
from studies.hindsight import hindsight_loss
from studies.mask_fault import commit_mask_fault
from studies.questions import ARMS, BASE, QUESTIONS, Arm, Values
from studies.record import Effort, circumstances, path_of, write
from studies.resuming import folder_of, keep_points, kept_points, resumed

_EXAMINED_MORE = {name for key in ("order", "method", "clean") for name in QUESTIONS[key].arms}
POINTS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the budget at which the student is examined; and before it."""


# --- what is to be run --------------------------------------------------------------------------------------------


def definition(name: str, seed: int, effort: Effort) -> dict[str, Any]:
    """All that decides an arm's result, as plain values: what its file is known by."""
    arm = ARMS[name]
    whole = _scaled(_merged(BASE, arm.change), effort.scale)
    parts = len(arm.stages)
    shares = [whole["rollouts"] * (i + 1) // parts - whole["rollouts"] * i // parts for i in range(parts)]
    stages = [_merged(whole, {**stage, "rollouts": n}) for stage, n in zip(arm.stages, shares, strict=True)]
    more = {"turns": list(arm.turns), "answers": arm.answers, "mask_fault": arm.mask_fault}
    more |= {"hindsight": arm.hindsight, "train_only": list(arm.train_only)}
    return {"arm": name, "seed": seed, **asdict(effort), "stages": stages, **more}


def _merged(values: Values, change: Values) -> Values:
    """A group of settings that is given in part keeps the other values."""
    groups = {name: {**values[name], **new} for name, new in change.items() if isinstance(new, Mapping)}
    return {**values, **change, **groups}


def _scaled(values: Values, scale: float) -> Values:
    """All numbers of rollouts times `scale`."""
    ramp = values["response_length"]
    return {
        **values,
        "rollouts": max(1, round(scale * values["rollouts"])),
        "warm_start_rollouts": round(scale * values["warm_start_rollouts"]),
        "response_length": {**ramp, "rollouts": round(scale * ramp["rollouts"])},
    }


# --- a run --------------------------------------------------------------------------------------------------------


def method_of_study(turns: Sequence[DistillSettings], hindsight: float) -> Method:
    """Rollouts follow several settings in turn, and the loss may look back."""
    method = in_turn(*(method_of(settings) for settings in turns))
    function = log_divergence(turns[0])

    def looking_back(pair: Pair, index: int) -> Plan:
        return replace(method(pair, index), loss=partial(hindsight_loss, pair, function, hindsight))

    return method if hindsight == 1 else looking_back


@dataclass
class Models:
    """The AR model twice, as the student that learns and as it was, with what both read."""

    student: BlockDiffusionModel
    original: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: SpecialTokens

    @classmethod
    def load(cls) -> "Models":
        ar_model, tokenizer = load_ar_model(ar_model_path())
        mask_token_id = find_or_add_mask_token(ar_model, tokenizer)
        original = copy.deepcopy(ar_model).requires_grad_(False)
        student = BlockDiffusionModel(ar_model, Geometry(BASE["block_size"]), mask_token_id)
        return cls(student, original, tokenizer, special_tokens(ar_model, tokenizer))


@dataclass
class Curve:
    """The student's results on the way, each with what it cost up to there (examinations not counted)."""

    models: Models
    exam: Exam
    rollouts: int
    folder: Path
    points: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    done: int = 0
    earlier_s: float = 0
    """Training of earlier calls, their examinations not counted."""

    def step(self, metrics: StepMetrics) -> None:
        """After each rollout: adds its costs, and examines the student where a point is due."""
        self._count(metrics)
        if self.done in self.due:
            self.point(metrics)

    def resume(self, metrics: Sequence[StepMetrics]) -> None:
        """Rollouts of an earlier call; it may have ended before the last examination."""
        for one in metrics:
            self._count(one)
            self.earlier_s += sum(one.seconds.values())
        if metrics and self.done in self.due and not any(point["rollouts"] == self.done for point in self.points):
            self.point(metrics[-1])

    @property
    def due(self) -> set[int]:
        """The rollouts behind which the student is examined."""
        return {max(1, round(share * self.rollouts)) for share in POINTS}

    def _count(self, metrics: StepMetrics) -> None:
        self.done += 1
        spent = {
            "tokens_trained": metrics.tokens_trained,
            "tokens_rolled_out": metrics.tokens_trained if metrics.flops.rollout else 0,
            "positions_supervised": metrics.positions_supervised,
            "flops": metrics.flops.sum(),
            "seconds": sum(metrics.seconds.values()),
        }
        self.costs = {name: self.costs.get(name, 0) + value for name, value in spent.items()}

    def point(self, metrics: StepMetrics | None = None) -> None:
        """Examines the student as it is now."""
        models = self.models
        results = student_results(models.student, models.tokenizer, models.tokens, self.exam.validation, ON_THE_WAY)
        names = ("loss", "tokens_per_forward", "stopped_rows")
        told = {} if metrics is None else {name: getattr(metrics, name) for name in names}
        costs = {name: float(f"{value:.6g}") for name, value in self.costs.items()}
        before = [point for point in self.points if point["rollouts"] < self.done]
        self.points = [*before, {"rollouts": self.done, **costs, "last_rollout": told, "results": results}]
        keep_points(self.folder, self.points)


def run(name: str, seed: int, effort: Effort, folder: Path) -> dict[str, Any]:
    """Runs an arm on one thread, writes its file and returns what it holds."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    began = perf_counter()
    arm, about, found = ARMS[name], definition(name, seed, effort), circumstances()
    exam = Exam.of_size(effort.per_family)
    models = Models.load()
    teacher = {
        "final": teacher_result(models.original, models.tokenizer, exam.final),
        "validation": teacher_result(models.original, models.tokenizer, exam.validation),
    }
    kept = folder_of(folder, name, seed, about)
    curve = _converted(arm, about, models, exam, kept)
    decodings = (*DECODINGS, *(MORE_DECODINGS if name in _EXAMINED_MORE else ()))
    final = student_results(models.student, models.tokenizer, models.tokens, exam.final, decodings)
    record = {
        "definition": about,
        "reason": arm.reason,
        **found,
        "seconds": round(perf_counter() - began + curve.earlier_s, 1),
        "teacher": teacher,
        "curve": curve.points,
        "final": final,
    }
    write(path_of(folder, name, seed), record)
    shutil.rmtree(kept)
    return record


def _converted(arm: Arm, about: Mapping[str, Any], models: Models, exam: Exam, folder: Path) -> Curve:
    """Trains `models.student` in the arm's stages. Every arm with the same seed and budget gets the same prompts.

    `folder`: where an arm that is stopped goes on from.
    """
    rollouts = sum(stage["rollouts"] for stage in about["stages"])
    stream = mixed(about["seed"], "conversion")
    curve = Curve(models, exam, rollouts, folder, kept_points(folder))
    for number, stage in enumerate(about["stages"]):
        problems = list(itertools.islice(stream, stage["rollouts"] * stage["prompts_per_rollout"]))
        values = {**stage, "seed": about["seed"]}
        turns = tuple(settings_from(DistillSettings, _merged(values, turn)) for turn in about["turns"])
        settings = turns[0]
        models.student = models.student.at(Geometry(settings.block_size, settings.prediction, settings.context))
        if arm.mask_fault:
            commit_mask_fault(models.student)
        for parameter_name, parameter in models.student.model.named_parameters():
            parameter.requires_grad_(not arm.train_only or any(part in parameter_name for part in arm.train_only))
        if not curve.points:
            curve.point()
        teacher = Teacher(BlockDiffusionModel(models.original, models.student.geometry, models.student.mask_token_id))
        trainer = Trainer(
            pair=Pair.of(models.student, teacher, models.tokens),
            prompts=[encode_prompt(models.tokenizer, problem.prompt) for problem in problems],
            responses=_answers(arm, models, problems),
            settings=settings,
            method=method_of_study(turns, arm.hindsight),
            on_step=curve.step,
        )
        curve.resume(resumed(trainer, folder / f"stage-{number}"))
        trainer.train()
    return curve


_IN_WORDS: Mapping[str, Callable[[Problem], str]] = {
    "reference": attrgetter("response"),
    "remarked": remarked,
    "foreign": restyled,
}


def _answers(arm: Arm, models: Models, problems: Sequence[Problem]) -> list[list[int]] | None:
    """Given answers with the end of the text; None where the teacher or the student writes."""
    if arm.answers == "teacher":
        return None
    texts = map(_IN_WORDS[arm.answers], problems)
    encoded = (models.tokenizer.encode(text, add_special_tokens=False) for text in texts)
    return [[*ids, models.tokens.stop_token_ids[0]] for ids in encoded]
