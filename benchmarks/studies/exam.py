"""The questions that every arm is asked: one set on the way, for the curves and for choices; another at the end."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.config import GenerationSettings, settings_from
from opdlm.evals.graders import grade
from opdlm.evals.writers import Writer, ar_writer, diffusion_writer
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.api import DiffusionLM
from opdlm.tiny.families import FAMILIES, GENERATORS
from opdlm.tiny.problems import Problem

DECODINGS = ("static", "sequential", "dynamic:0.9", "dynamic:0.8", "dynamic:0.7")
MORE_DECODINGS = ("dynamic:0.98", "dynamic:0.95", "prefix:0.98", "prefix:0.95", "prefix:0.9", "prefix:0.8", "checked")
"""For the arms of some questions only."""
SUREST_FIRST = ("static", "dynamic:0.98", "dynamic:0.95", "dynamic:0.9", "dynamic:0.8", "dynamic:0.7")
LEFT_TO_RIGHT = ("sequential", "prefix:0.98", "prefix:0.95", "prefix:0.9", "prefix:0.8")
"""The two orders, from slow to fast."""
ON_THE_WAY = ("static", "dynamic:0.9")
AT_THE_END = ("sequential", *ON_THE_WAY)
"""By which accuracies by task, and whole runs of several budgets, are shown."""
MAX_NEW_TOKENS = 64  # the longest reference response has 33
BATCH = 32
LARGEST = 256
_SEED = 1  # the demo's recipe was chosen on questions of seed 0

Result = dict[str, Any]


@dataclass(frozen=True)
class Exam:
    """Questions of the eval split; no question is asked twice, and none of `validation` is in `final`.

    There are 320 facts with one question each, 154 of them unseen: enough for `LARGEST` questions of a family.
    """

    final: tuple[Problem, ...]
    validation: tuple[Problem, ...]

    @classmethod
    def of_size(cls, per_family: int) -> "Exam":
        """`per_family` final questions of each family, and a fifth as many for validation."""
        if not 10 <= per_family <= LARGEST:
            raise SystemExit(f"{per_family} questions of a family: give 10 to {LARGEST}")
        final, rest = [], []
        for family in FAMILIES:
            # Recall is asked in halves: facts that conversion prompts name, and facts that none names.
            tags = ("seen", "unseen") if family == "recall" else (None,)
            for tag in tags:
                stream = _different(family, tag)
                final += [next(stream) for _ in range(per_family // len(tags))]
                rest += [next(stream) for _ in range(per_family // 5 // len(tags))]
        return cls(tuple(final), tuple(rest))


def _different(family: str, tag: str | None) -> Iterator[Problem]:
    """The family's questions, each once."""
    asked: set[str] = set()
    for problem in GENERATORS[family](_SEED, "eval"):
        if problem.prompt not in asked and tag in (None, problem.tag):
            asked.add(problem.prompt)
            yield problem


def student_results(
    student: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: SpecialTokens,
    problems: Sequence[Problem],
    decodings: Sequence[str],
) -> dict[str, Result]:
    """Greedy answers of the student, by decoding."""
    found = {}
    for decoding in decodings:
        settings = settings_from(GenerationSettings, {"decoding": decoding, "max_new_tokens": MAX_NEW_TOKENS})
        lm = DiffusionLM(student, tokenizer, settings, tokens)
        writer = diffusion_writer(partial(lm.finished, settings=settings, batch_size=BATCH), tokenizer)
        found[decoding] = _result(writer, problems)
    return found


def teacher_result(
    ar_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> Result:
    """Greedy answers of the AR model."""
    settings = GenerationSettings(max_new_tokens=MAX_NEW_TOKENS)
    return _result(ar_writer(ar_model, tokenizer, settings, batch_size=BATCH), problems)


def _result(writer: Writer, problems: Sequence[Problem]) -> Result:
    """Accuracy (mean over families), tokens a forward, and [right, asked] of each family and each of its tags."""
    by_index = dict(writer([problem.prompt for problem in problems]))
    written = [by_index[index] for index in range(len(problems))]
    counts: dict[str, list[int]] = {}
    for problem, response in zip(problems, written, strict=True):
        right = _right(problem, response.text)
        for label in (problem.family, f"{problem.family} {problem.tag}"):
            count = counts.setdefault(label, [0, 0])
            count[0] += right
            count[1] += 1
    shares = [counts[family][0] / counts[family][1] for family in FAMILIES]
    forwards = sum(response.forwards for response in written)
    return {
        "accuracy": round(sum(shares) / len(shares), 5),
        "tokens_per_forward": round(sum(response.tokens for response in written) / max(1, forwards), 4),
        "counts": counts,
    }


@functools.cache
def _right(problem: Problem, text: str) -> bool:
    """As `grade`; the reference answer itself needs no run of its code, and the same answer only one."""
    return text.strip() == problem.response or grade(problem, text)
