"""HumanEval and MBPP: Python functions, graded by tests in the sandbox (docs/sandbox.md)."""

import re
from typing import Any

from opdlm.errors import PromptsError
from opdlm.evals.problem import Problem
from opdlm.evals.suites.suite import HubSet, Suite, field, text_field

_MBPP_TEST = range(11, 511)
"""Task ids of the test split (arXiv 2108.07732): 1 to 10 are examples, those from 511 on are for training."""


def _humaneval(row: Any, where: str) -> Problem:
    code, entry = text_field(row, where, "prompt"), text_field(row, where, "entry_point")
    return Problem(
        "humaneval",
        f"Complete this Python function. Answer with the whole function in a code block.\n```python\n{code}```",
        code + str(row.get("canonical_solution", "")),
        entry,
        tests=text_field(row, where, "test"),
        prelude=code,
        plain=code,
    )


def _mbpp(row: Any, where: str) -> Problem | None:
    number = row.get("task_id") if isinstance(row, dict) else None
    if isinstance(number, int) and number not in _MBPP_TEST:
        return None
    task, code = text_field(row, where, "text", "prompt"), text_field(row, where, "code")
    asserts = field(row, where, "test_list")
    if not isinstance(asserts, list) or not all(isinstance(one, str) for one in asserts):
        raise PromptsError(f"{where} needs test_list: a list of asserts; check --data")
    setup = "\n".join([row.get("test_setup_code") or "", *(row.get("test_imports") or [])])
    tests = "\n".join([setup, *asserts])
    names = [name for name in re.findall(r"def (\w+)", code) if f"{name}(" in tests]
    if not names:
        raise PromptsError(f"{where} has tests that call no function of its code; correct it")
    shown = "\n".join(asserts)
    prompt = f"You are an expert Python programmer, and here is your task: {task}"
    prompt += f" Your code should pass these tests:\n\n{shown}"
    chat = f"{prompt}\n\nAnswer with the code alone, in a code block."
    return Problem("mbpp", chat, code, names[-1], tests=tests, plain=f"{prompt}\n[BEGIN]\n")


PROGRAMS = (
    Suite(
        "humaneval",
        "Chen and others, arXiv 2107.03374: pass@1 of one answer",
        512,
        _humaneval,
        HubSet("openai/openai_humaneval"),
    ),
    Suite(
        "mbpp",
        "Austin and others, arXiv 2108.07732: tasks 11 to 510, pass@1 of one answer, no examples before the task",
        512,
        _mbpp,
        HubSet("google-research-datasets/mbpp", "full"),
    ),
)
