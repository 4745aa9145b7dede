"""Tests that read how likely a model finds text: multiple choice, and the last word of a passage (LAMBADA)."""

import re
from typing import Any

from opdlm.errors import PromptsError
from opdlm.evals.problem import Problem
from opdlm.evals.suites.suite import HubSet, Suite, field, text_field

_LAST_WORD = re.compile(r"^(.*\S)\s+[\"'“‘(]*(\w+(?:['’\-]\w+)*)[^\w]*$", re.DOTALL)


def _choice(row: Any, where: str) -> Problem:
    """Columns of MMLU (question, choices, answer), of ARC (choices with labels, answerKey) or of HellaSwag."""
    if isinstance(row, dict) and "endings" in row:  # HellaSwag: an ending continues the text itself
        text, options = text_field(row, where, "ctx"), field(row, where, "endings")
        return _options(where, text, options, field(row, where, "label"))
    question, options = text_field(row, where, "question"), field(row, where, "choices", "options")
    if isinstance(options, dict):
        labels, key = field(options, where, "label"), field(row, where, "answerKey")
        if key not in labels:
            raise PromptsError(f"{where} has the answer {key!r}, which is no label of its choices; correct it")
        return _options(where, _question(question), field(options, where, "text"), list(labels).index(key))
    return _options(where, _question(question), options, field(row, where, "answer"))


def _question(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _options(where: str, text: str, options: Any, right: Any) -> Problem:
    """`right`: the number of the right option, from 0, or its text."""
    if not isinstance(options, list | tuple) or not all(isinstance(one, str) and one.strip() for one in options):
        raise PromptsError(f"{where} needs its options as a list of texts; check --data")
    number = options.index(right) if right in options else _index(right)
    if number is None or not 0 <= number < len(options) or len(set(options)) < len(options):
        raise PromptsError(f"{where} has the answer {right!r} to {len(options)} options; two are alike, or it is none")
    return Problem("choice", "", "", options[number], plain=text, options=tuple(options))


def _index(right: Any) -> int | None:
    return int(right) if isinstance(right, int) or (isinstance(right, str) and right.isdecimal()) else None


def _lambada(row: Any, where: str) -> Problem:
    """A passage whose last word is left out; punctuation behind it is not asked for."""
    text = row if isinstance(row, str) else text_field(row, where, "text")
    found = _LAST_WORD.match(text.strip())
    if found is None:
        raise PromptsError(f"{where} is a passage without two words; correct it")
    return Problem("lambada", "", "", found[2], plain=found[1])


TEXTS = (
    Suite(
        "choice",
        "lm-evaluation-harness, acc_norm; data as those of MMLU, ARC (Challenge is the default) or HellaSwag",
        1,
        _choice,
        HubSet("allenai/ai2_arc", "ARC-Challenge"),
        chooses=True,
    ),
    Suite(
        "lambada",
        "Paperno and others, arXiv 1606.06031; the text as in lm-evaluation-harness, no chat template, greedy",
        8,
        _lambada,
        HubSet("EleutherAI/lambada_openai", "default"),
    ),
)
