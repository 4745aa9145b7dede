"""GSM8K, SVAMP and MATH: worked problems with one final answer."""

import math
from typing import Any

from opdlm.errors import PromptsError
from opdlm.evals.final_answers import last_boxed
from opdlm.evals.problem import Problem
from opdlm.evals.suite_graders import check_math_verify
from opdlm.evals.suites.suite import HubSet, Suite, field, text_field

_STEPS = "Please reason step by step, and put your final answer within \\boxed{}."
"""The instruction that maths models of the Qwen family are evaluated with (arXiv 2409.12122)."""


def _asked(family: str, question: str, answer: str, response: str = "", tag: str = "") -> Problem:
    """With a chat template: the question and the instruction. Without: as lm-evaluation-harness asks base models."""
    plain = f"Question: {question}\nAnswer: Let's think step by step."
    return Problem(family, f"{question}\n{_STEPS}", response, answer, tag=tag, plain=plain)


def _gsm8k(row: Any, where: str) -> Problem:
    question, solution = text_field(row, where, "question"), text_field(row, where, "answer")
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise PromptsError(f"{where} has no #### before its answer, as GSM8K has it; check --data")
    return _asked("gsm8k", question, answer.strip(), solution)


def _svamp(row: Any, where: str) -> Problem:
    body, question = text_field(row, where, "Body").strip(), text_field(row, where, "Question")
    number = _number(row, where, "Answer")
    answer = str(int(number)) if number.is_integer() else str(number)
    body = body if body.endswith((".", "?", "!", ",")) else body + "."
    return _asked("svamp", f"{body} {question}", answer, tag=str(row.get("Type", "")))


def _math(row: Any, where: str) -> Problem:
    problem, given = text_field(row, where, "problem"), row.get("answer")
    solution = text_field(row, where, "solution") if row.get("solution") else ""
    answer = last_boxed(solution) if given in (None, "") else given  # 0 is an answer
    if answer is None:
        raise PromptsError(f"{where} has neither an answer nor a solution with \\boxed{{}}; check --data")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise PromptsError(f"{where} has a {type(answer).__name__} as answer, not text or a number; check --data")
    return _asked("math", problem, str(answer), solution, str(row.get("subject") or row.get("type") or ""))


def _number(row: Any, where: str, name: str) -> float:
    value = field(row, where, name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise PromptsError(f"{where} has {value!r} in the column {name}, which is no number; check --data")
    return number


MATHS = (
    Suite(
        "gsm8k",
        "Cobbe and others, arXiv 2110.14168; last number as flexible-extract of lm-evaluation-harness",
        512,
        _gsm8k,
        HubSet("openai/gsm8k", "main"),
    ),
    Suite("svamp", "Patel and others, arXiv 2103.07191; graded as GSM8K", 256, _svamp, HubSet("ChilleD/SVAMP")),
    Suite(
        "math",
        "Hendrycks and others, arXiv 2103.03874; MATH-500 of arXiv 2305.20050; graded by math-verify",
        1024,
        _math,
        HubSet("HuggingFaceH4/MATH-500"),
        check=check_math_verify,
    ),
)
