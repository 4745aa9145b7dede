"""Teacher and student on the same problems: `opdlm.evaluate`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.checkpoints.load import load_ar_model
from opdlm.config import LOSSLESS, Decoding, GenerationSettings, as_text, settings_from
from opdlm.core.types import Geometry
from opdlm.errors import CheckpointError, UsageError
from opdlm.evals.acceptance import acceptance_of
from opdlm.evals.answers import answered
from opdlm.evals.graders import confinement_for
from opdlm.evals.original import original_of
from opdlm.evals.problem import Problem
from opdlm.evals.problem_files import load_problems
from opdlm.evals.writers import SAMPLING, ar_writer, diffusion_writer
from opdlm.models.devices import dtype_name
from opdlm.models.tokens import encode_prompt
from opdlm.records.evaluation import Comparison, GradedAnswer
from opdlm.sampling.api import DiffusionLM, check_context, load
from opdlm.sampling.ways import way_of

OnProgress = Callable[[str, int, int], None]
"""Called with (who answers, responses written, problems)."""
OnAnswer = Callable[[GradedAnswer], None]


def evaluate(
    model: str | Path,
    against: str | Path | None,
    problems: str | Path | Sequence[Problem],
    decodings: Sequence[str] = (),
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    on_progress: OnProgress = lambda name, done, total: None,
    on_answer: OnAnswer = lambda answer: None,
    allow_unconfined_code: bool = False,
    **sampling: Any,
) -> Comparison:
    """Have a converted model and its original answer the same problems, greedily unless `temperature` is given.

    Args:
        model: folder or hub name of the converted model. against: of the AR model that it was made from; None: as the
            model's run or card says (`original_of`).
        problems: a file (`load_problems`), or a list.
        decodings: how the converted model decodes, such as "prefix:0.95"; one evaluation each. None: some, from one
            token a step to many, in its usual order.
        max_new_tokens: longest answer. batch_size: rows decoded at once. device, dtype: as for `load`.
        on_progress: called at the start and with each answer. on_answer: called with each answer and its verdict.
        sampling: the fields of GenerationSettings in SAMPLING, for both models.
        allow_unconfined_code: run programs with your own rights where the system cannot confine them (docs/sandbox.md).

    Raises:
        CheckpointError: one is not made from the other.
        ContextLengthError: a problem and its answer do not fit into the context.
        ConfigError: a decoding that does not exist.
        PromptsError: the file is missing, empty, or holds something that is no problem.
        UnconfinedCodeError: grading runs programs, and this system cannot confine them.
    """
    _check_sampling(sampling)
    check_decodings(decodings, max_new_tokens=max_new_tokens, **sampling)
    asked = load_problems(str(problems)) if isinstance(problems, str | Path) else list(problems)
    if not asked:
        raise UsageError("there are no problems to evaluate; give at least one")
    confinement_for(asked, allow_unconfined_code=allow_unconfined_code)  # an error before any model is loaded
    against = original_of(model) if against is None else against
    student, ar_model = load_pair(model, against, device, dtype)
    chosen = decodings or usual_decodings(student.defaults.decoding, student.model.geometry)
    made = compare(
        student,
        ar_model,
        asked,
        chosen,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        on_progress=on_progress,
        on_answer=lambda one: on_answer(one.model_copy(update={"model": str(model if one.decoding else against)})),
        allow_unconfined_code=allow_unconfined_code,
        **sampling,
    )
    return made.model_copy(update={"model": str(model), "against": str(against)})


def check_decodings(decodings: Sequence[str], **settings: Any) -> None:
    """Raises ConfigError for a decoding or setting that does not exist: before any model is loaded."""
    for decoding in decodings or ("static",):
        settings_from(GenerationSettings, {**settings, "decoding": decoding})


def check_ways(student: DiffusionLM, decodings: Sequence[str]) -> None:
    """Raises UsageError for a decoding that this model does not have: before anybody has answered."""
    for decoding in decodings:
        way_of(student.model, greedy(decoding, 1).decoding.kind)


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    unknown = next((name for name in sampling if name not in SAMPLING), None)
    if unknown is not None:
        raise UsageError(f"the AR model cannot be given {unknown!r}; use one of {', '.join(SAMPLING)}")


def load_pair(
    student_name: str | Path, ar_name: str | Path, device: str, dtype: str | torch.dtype
) -> tuple[DiffusionLM, PreTrainedModel]:
    """A converted model and its original. Raises CheckpointError if one is not made from the other."""
    student = load(student_name, device, dtype, pack=True)
    ar_model, tokenizer = load_ar_model(ar_name, device=student.model.device, dtype=student.model.dtype)
    check_vocabulary(student.tokenizer, tokenizer, student_name, ar_name)
    return student, ar_model


def check_vocabulary(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, student_name: str | Path, ar_name: str | Path
) -> None:
    """Raises CheckpointError if a model cannot have been made from the other: a token of it has another id."""
    vocabulary = ours.get_vocab()
    if any(vocabulary.get(token) != index for token, index in theirs.get_vocab().items()):
        raise CheckpointError(
            f"{student_name} and {ar_name} have different vocabularies; name the model that the first was made from"
        )


def compare(
    student: DiffusionLM,
    ar_model: PreTrainedModel,
    problems: Sequence[Problem],
    decodings: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_progress: OnProgress = lambda name, done, total: None,
    on_answer: OnAnswer = lambda answer: None,
    allow_unconfined_code: bool = False,
    **sampling: Any,
) -> Comparison:
    """As `evaluate`, with models that are loaded already."""
    _check_sampling(sampling)
    check_ways(student, decodings)
    common = {**sampling, "max_new_tokens": max_new_tokens}
    settings = {text: settings_from(GenerationSettings, {**common, "decoding": text}) for text in decodings}
    prompts = [encode_prompt(student.tokenizer, problem.prompt) for problem in problems]
    check_context(prompts, max_new_tokens, student.model.max_length, student.model.geometry.block_size)
    run = partial(answered, problems=problems, allow_unconfined_code=allow_unconfined_code)
    texts: dict[str, dict[int, str]] = {name: {} for name in ("", *decodings)}  # by decoding, "" the teacher's

    def keep(answer: GradedAnswer) -> None:
        texts[answer.decoding][answer.number] = answer.response
        on_answer(answer)

    writer = ar_writer(ar_model, student.tokenizer, settings_from(GenerationSettings, common), batch_size=batch_size)
    teacher = run("teacher", writer, on_progress=partial(on_progress, "teacher"), on_answer=keep)
    students = []
    for text, chosen in settings.items():
        write, drafts = (
            partial(student.finished, settings=chosen, batch_size=batch_size),
            acceptance_of(student, chosen),
        )
        writer = diffusion_writer(
            lambda ids, write=write, drafts=drafts: drafts.watching(write(ids)), student.tokenizer
        )
        show = partial(on_progress, text)
        made = run(f"student, {text}", writer, decoding=text, on_progress=show, on_answer=keep)
        same = sum(texts[text][number] == response for number, response in texts[""].items())
        students.append(made.model_copy(update={"same_text": same, "acceptance": drafts.shares}))
    dtype = dtype_name(student.model.dtype)
    return Comparison(teacher=teacher, students=tuple(students), batch_size=batch_size, dtype=dtype)


def usual_decodings(default: Decoding, geometry: Geometry) -> tuple[str, ...]:
    """What a student is compared by if nothing is asked for: one token a step, its `default`, then ever more, in its
    usual order."""
    kind = default.kind
    if kind in LOSSLESS:
        return tuple(dict.fromkeys(("sequential", kind, as_text(default))))
    reads = (geometry.prediction, geometry.context) == ("shifted", "causal")  # and so checks its own drafts
    if kind in ("prefix", "checked"):
        first, *others = "sequential", *(["checked"] if reads else []), "prefix:0.98", "prefix:0.95", "prefix:0.9"
    else:
        first, *others = "static", "dynamic:0.9", "dynamic:0.8", "dynamic:0.7"
    compared = any(greedy(one, 1).decoding == default for one in (first, *others))
    return (first, *others) if compared else (first, as_text(default), *others)


def greedy(decoding: str, max_new_tokens: int) -> GenerationSettings:
    """The settings of an evaluation; ConfigError if the decoding does not exist."""
    return settings_from(GenerationSettings, {"decoding": decoding, "max_new_tokens": max_new_tokens})
