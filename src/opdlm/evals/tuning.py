"""Finds the fastest decoding whose text is nearly as good as that of one token a step."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from opdlm.checkpoints.load import load_ar_model
from opdlm.config import GenerationSettings, settings_from
from opdlm.evals.answers import answered
from opdlm.evals.bits import per_token, read
from opdlm.evals.compare import check_vocabulary, check_ways
from opdlm.evals.original import original_of
from opdlm.evals.problem import Problem
from opdlm.evals.writers import diffusion_writer
from opdlm.models.drafting import DraftingModel
from opdlm.records.evaluation import GradedAnswer
from opdlm.records.tuning import Trial, difference_interval
from opdlm.sampling.api import DiffusionLM

Measure = Callable[[str], Trial]
"""Writes the held-out texts with a decoding, takes the time, and says how good they are."""

_THRESHOLDS = (0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
_NUMBERS: dict[str, tuple[float, ...]] = {
    "prefix": _THRESHOLDS,
    "dynamic": _THRESHOLDS,
    "klass": _THRESHOLDS,
    "entropy": (0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
    "factor": (0.25, 0.5, 1.0, 1.5, 2.0),
    "static": (1, 2, 3, 4),
    "typical": (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05),
}
"""Numbers that are tried of each kind, from careful to fast."""
_FINALISTS, _RACES = 3, 2


def search(
    measure: Measure,
    reference: str,
    ladders: Sequence[Sequence[str]],
    max_drop: float,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Climbs each ladder, from its careful end, until the drop is surely more than allowed; the reference comes first.

    Args:
        max_drop: largest drop of the mean quality below that of `reference`, from 0 to 1.
    """
    trials = {reference: measure(reference)}
    on_trial(trials[reference])
    for ladder in ladders:
        for decoding in ladder:
            if decoding in trials:
                continue
            trial = trials[decoding] = measure(decoding)
            on_trial(trial)
            if difference_interval(trial, trials[reference])[1] < -max_drop:
                break
    return list(trials.values())


def raced(trials: Sequence[Trial], in_order: Sequence[Trial], measure: Measure) -> list[Trial]:
    """The trials, the fastest few timed again in turns: the shortest time of each counts, for one may be disturbed."""
    best = {one.decoding: one for one in in_order[:_FINALISTS]}
    for _ in range(_RACES):
        for decoding, trial in best.items():
            seconds = min(trial.seconds, measure(decoding).seconds)
            best[decoding] = trial.model_copy(update={"seconds": seconds})
    return [best.get(one.decoding, one) for one in trials]


def reference_of(student: DiffusionLM) -> str:
    """One token a step, in the model's own order: from left to right where it reads so, else the surest first."""
    geometry = student.model.geometry
    return "sequential" if (geometry.prediction, geometry.context) == ("shifted", "causal") else "static:1"


def original_for(student: DiffusionLM, name: str | Path, against: str | Path | None) -> PreTrainedModel:
    """The AR model that the student's texts are compared with; a lossless model holds its own."""
    if isinstance(student.model, DraftingModel):
        return student.model.model
    against = original_of(name) if against is None else against
    ar_model, tokenizer = load_ar_model(against, device=student.model.device, dtype=student.model.dtype)
    check_vocabulary(student.tokenizer, tokenizer, name, against)
    return ar_model


def ladders_for(student: DiffusionLM, kinds: Sequence[str] = ()) -> list[list[str]]:
    """What is tried, a ladder a kind. `kinds`: those, such as "prefix" (all its numbers) or "prefix:0.97".

    UsageError for a kind that the student does not have.
    """
    if kinds:
        check_ways(student, kinds)
        return [list(_ladder(student, kind)) for kind in kinds]
    if isinstance(student.model, DraftingModel):
        return [["verified:auto"], list(_ladder(student, "verified")), list(_ladder(student, "typical"))]
    checked = ("checked:auto", "checked") if reference_of(student) == "sequential" else ()
    return [list(_ladder(student, kind)) for kind in (*checked, "prefix", "dynamic", "entropy")]


def _ladder(student: DiffusionLM, kind: str) -> Iterator[str]:
    if kind == "verified" and isinstance(student.model, DraftingModel):
        drafts = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
        yield from (f"verified:{count}" for count in drafts if count <= student.model.window)
    elif kind in _NUMBERS:
        yield from (f"{kind}:{number:g}" for number in _NUMBERS[kind])
    else:
        yield kind


def by_accuracy(
    student: DiffusionLM,
    problems: Sequence[Problem],
    settings: dict[str, Any],
    *,
    batch_size: int,
    allow_unconfined_code: bool = False,
) -> Measure:
    """The quality of a text is whether it answers its problem. `settings`: of GenerationSettings, without decoding."""

    def measure(decoding: str) -> Trial:
        chosen = settings_from(GenerationSettings, {**settings, "decoding": decoding})
        answers: list[GradedAnswer] = []
        made = answered(
            decoding,
            diffusion_writer(partial(student.finished, settings=chosen, batch_size=batch_size), student.tokenizer),
            problems,
            decoding=decoding,
            on_answer=answers.append,
            allow_unconfined_code=allow_unconfined_code,
        )
        quality = tuple(float(one.correct) for one in sorted(answers, key=lambda one: one.number))
        total = made.total
        return Trial(
            decoding=decoding, quality=quality, tokens=total.tokens, forwards=total.forwards, seconds=made.seconds
        )

    return measure


def by_agreement(
    student: DiffusionLM,
    original: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: dict[str, Any],
    *,
    batch_size: int,
) -> Measure:
    """The quality of a text is the share of its tokens that are the original's first choice behind the text before."""

    def measure(decoding: str) -> Trial:
        chosen = settings_from(GenerationSettings, {**settings, "decoding": decoding})
        student.written(prompts[:1], chosen, batch_size)  # nobody pays for the first use of kernels and caches
        began = time.perf_counter()
        rollout = student.written(prompts, chosen, batch_size)
        seconds = time.perf_counter() - began
        begins, ends = rollout.prompt_length.tolist(), rollout.length.tolist()
        rows = zip(rollout.input_ids.tolist(), begins, ends, strict=True)
        if isinstance(student.model, DraftingModel):
            student.model.gate.width = 0  # its own weights read
        readings = read(original, [(ids[:end], begin) for ids, begin, end in rows])
        return Trial(
            decoding=decoding,
            quality=tuple(one.agreed / one.tokens for one in readings),
            tokens=sum(ends) - sum(begins),
            forwards=int(rollout.forwards.sum()),
            seconds=seconds,
            bits_per_token=per_token(readings),
        )

    return measure
