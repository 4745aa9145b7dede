"""One run: a gate for the embedded AR model, trained as an arm says and examined at the end."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from opdlm.checkpoints.load import load_ar_model
from opdlm.config import ConvertSettings, GenerationSettings, VerifiedDecoding, settings_from
from opdlm.core.divergence import forward_kl, total_variation
from opdlm.core.layout import CLEAN, PADDING
from opdlm.core.types import Rollout
from opdlm.core.windows import WindowChoice, select_windows, windows_behind
from opdlm.distill.loop import Trainer
from opdlm.distill.losses import window_loss
from opdlm.distill.methods import Method, method_of
from opdlm.distill.pair import Pair
from opdlm.distill.prepare import adapted
from opdlm.distill.step import Plan
from opdlm.distill.teacher import CleanPass, Teacher
from opdlm.evals.acceptance import Acceptance
from opdlm.evals.writers import ar_writer
from opdlm.models.drafting import DraftingModel
from opdlm.models.tokens import SpecialTokens, encode_prompt
from opdlm.records.metrics import StepMetrics
from opdlm.sampling.api import DiffusionLM
from opdlm.tiny.families import FAMILIES, mixed
from opdlm.tiny.problems import Problem
from opdlm.tiny.weights import ar_model_path
from studies.exam import BATCH, MAX_NEW_TOKENS, Exam
from studies.lossless_arms import ARMS, BASE, Arm
from studies.record import Effort, circumstances, path_of, write

_LOSSES = {"forward_kl": forward_kl, "tv": total_variation}
_RANKS = 2  # the gate's first and second choice


def definition(name: str, seed: int, effort: Effort) -> dict[str, Any]:
    """All that decides an arm's result, as plain values: what its file is known by."""
    arm = ARMS[name]
    settings = {**BASE, **arm.change}
    settings["rollouts"] = max(1, round(effort.scale * settings["rollouts"]))
    more = {"divergences": list(arm.divergences), "one_embedding": arm.one_embedding}
    return {"arm": name, "seed": seed, **asdict(effort), "settings": settings, **more}


def run(name: str, seed: int, effort: Effort, folder: Path) -> dict[str, Any]:
    """Runs an arm on one thread, writes its file and returns what it holds."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    began = perf_counter()
    arm, about, found = ARMS[name], definition(name, seed, effort), circumstances()
    settings = settings_from(ConvertSettings, {**about["settings"], "seed": seed})
    ar_model, tokenizer = load_ar_model(ar_model_path())
    exam = Exam.of_size(effort.per_family).final
    expected = _texts(ar_model, tokenizer, exam)
    student, tokens = adapted(ar_model, tokenizer, settings)
    assert isinstance(student, DraftingModel)
    losses = _trained(arm, student, tokenizer, tokens, settings)
    record = {
        "definition": about,
        "reason": arm.reason,
        **found,
        "costs": losses[-1].total.model_dump() | {"kl_first": losses[0].loss, "kl_last": losses[-1].loss},
        "seconds_by_part": _by_part(losses),
        "adapter_parameters": sum(p.numel() for p in student.gate.parameters()),
        "decoded": _decoded(DiffusionLM(student, tokenizer, GenerationSettings(), tokens), exam, expected),
        "seconds": round(perf_counter() - began, 1),
    }
    write(path_of(folder, name, seed), record)
    return record


def _trained(
    arm: Arm, student: DraftingModel, tokenizer: PreTrainedTokenizerBase, tokens: SpecialTokens, settings: Any
) -> list[StepMetrics]:
    """Trains the gate; every arm with the same seed and budget gets the same prompts."""
    if arm.one_embedding:
        assert student.gate.places is not None
        # The same start and the same gradients: all places stay equal.
        student.gate.places.register_hook(lambda gradient: gradient.mean(0, keepdim=True).expand_as(gradient))
    stream = mixed(settings.seed, "conversion")
    problems = itertools.islice(stream, settings.rollouts * settings.prompts_per_rollout)
    logged: list[StepMetrics] = []
    trainer = Trainer(
        pair=Pair.of(student, Teacher(student), tokens),
        prompts=[encode_prompt(tokenizer, problem.prompt) for problem in problems],
        settings=settings,
        method=_one_after_the_other(arm, method_of(settings), settings.rollouts),
        on_step=logged.append,
    )
    trainer.train()
    return logged


def _one_after_the_other(arm: Arm, method: Method, rollouts: int) -> Method:
    """The arm's losses, each for an equal share of the rollouts."""
    if not arm.divergences:
        return method

    def plan(pair: Pair, index: int) -> Plan:
        loss = _LOSSES[arm.divergences[index * len(arm.divergences) // rollouts]]
        return replace(method(pair, index), loss=partial(window_loss, pair, loss))

    return plan


def _by_part(logged: Sequence[StepMetrics]) -> dict[str, float]:
    parts = {name for metrics in logged for name in metrics.seconds}
    return {part: round(sum(metrics.seconds.get(part, 0.0) for metrics in logged), 1) for part in sorted(parts)}


# --- examination --------------------------------------------------------------------------------------------------


def _texts(ar_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[str]:
    """The AR model's greedy texts, by transformers' `generate`."""
    writer = ar_writer(ar_model, tokenizer, GenerationSettings(max_new_tokens=MAX_NEW_TOKENS), batch_size=BATCH)
    by_index = dict(writer([problem.prompt for problem in problems]))
    return [by_index[index].text for index in range(len(problems))]


def _decoded(lm: DiffusionLM, problems: Sequence[Problem], expected: Sequence[str]) -> dict[str, Any]:
    """With a window behind each draft, and with one behind the last alone."""
    found: dict[str, Any] = {}
    prompts = [encode_prompt(lm.tokenizer, problem.prompt) for problem in problems]
    for name, every in (("every", True), ("last", False)):
        settings = GenerationSettings(decoding=VerifiedDecoding(every=every), max_new_tokens=MAX_NEW_TOKENS)
        rollout = lm.written(prompts, settings, BATCH)
        tokens, forwards = rollout.length - rollout.prompt_length, rollout.forwards
        of = {name: [problem.family == name for problem in problems] for name in FAMILIES}
        found[name] = {
            "tokens_per_forward": round(float(tokens.sum() / forwards.sum()), 4),
            "by_family": {k: round(float(tokens[mine].sum() / forwards[mine].sum()), 4) for k, mine in of.items()},
            "same_text": sum(map(str.__eq__, _written(lm, rollout), expected)),
            "questions": len(problems),
        }
        if every:
            watched = Acceptance(lm.model.window)  # type: ignore[attr-defined]
            watched.saw(rollout)
            found[name]["acceptance"] = [round(share, 4) for share in watched.shares]
            found["behind_every_token"] = _choices(lm, rollout)
    return found


def _written(lm: DiffusionLM, rollout: Rollout) -> list[str]:
    rows = zip(rollout.input_ids.tolist(), rollout.prompt_length.tolist(), rollout.length.tolist(), strict=True)
    return lm.tokenizer.batch_decode([ids[begin:end] for ids, begin, end in rows], skip_special_tokens=True)


@torch.no_grad()
def _choices(lm: DiffusionLM, rollout: Rollout) -> dict[str, list[float]]:
    """Windows behind every token of the text: how often its next tokens are the gate's first and second choice.

    Each place counts where the first choices before it were all right.
    """
    student = lm.model
    assert isinstance(student, DraftingModel)
    choice = WindowChoice(student.window, "all", student.head_parameters()[0].shape[0], supervise_end=True)
    choice = replace(choice, vocabulary=choice.vocabulary if student.gate.form == "noise" else 0)
    counts = torch.zeros(1 + _RANKS, student.window)
    for part in torch.arange(len(rollout.length)).split(BATCH):
        text = rollout.rows(part)
        clean, windows = Teacher(student).clean_pass(text), select_windows(text, choice, part)
        counts += _counted(student, text, clean, windows)
    shares = (counts[1:] / counts[0].clamp(min=1)).tolist()
    return dict(zip(("first", "second"), ([round(share, 4) for share in row] for row in shares), strict=True))


def _counted(student: DraftingModel, text: Rollout, clean: CleanPass, windows: Any) -> torch.Tensor:
    """[1 + ranks, k]: windows that came to a place, and those of them whose n-th choice is right there."""
    stream = torch.where(clean.valid, CLEAN, PADDING)
    attention = windows_behind(windows, clean.position, stream, student.window, student.gate.form == "noise")
    hidden = student.hidden(windows.input_ids, attention, clean.prefix)[windows.sequence, windows.predictor]
    best = student.logits(hidden).topk(_RANKS).indices
    right = best == text.input_ids[windows.row, windows.position][:, None]
    size, shape = student.window, (*windows.input_ids.shape, _RANKS)
    placed = torch.zeros(shape, dtype=torch.bool).index_put((windows.sequence, windows.predictor), right)
    there = torch.zeros(shape[:2], dtype=torch.bool).index_put(
        (windows.sequence, windows.predictor), torch.tensor(True)
    )
    placed, there = placed.view(-1, size, _RANKS), there.view(-1, size)
    reached = torch.cat([torch.ones(len(there), 1), placed[:, :-1, 0].int().cumprod(1)], 1).bool() & there
    return torch.stack([reached.sum(0), *((placed[..., rank] & reached).sum(0) for rank in range(_RANKS))])
