"""Has a model answer a set of problems, takes the time and grades the answers."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from opdlm.errors import UsageError
from opdlm.evals.graders import check_gradable, confinement_for, grade
from opdlm.evals.problem import Problem
from opdlm.evals.sandbox_confinement import Confinement
from opdlm.evals.writers import Answer, Writer
from opdlm.records.evaluation import Evaluation, Score


def answered(
    name: str,
    writer: Writer,
    problems: Sequence[Problem],
    *,
    decoding: str = "",
    prompts_per_call: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    allow_unconfined_code: bool = False,
) -> Evaluation:
    """Has `writer` answer `problems` and grades the answers.

    One call with the first prompt goes before, uncounted, so that nobody pays for the first use of kernels and caches.

    Args:
        name: what is evaluated, as tables show it.
        writer: writes the responses.
        problems: at least one.
        decoding: how the writer decodes, for the record.
        prompts_per_call: prompts given to the writer at once, all if not set. Smaller calls make `on_progress` finer,
            and slow down writers that keep their batch full.
        on_progress: called after each call of the writer with (responses written, problems).
        allow_unconfined_code: run programs with the user's own rights where the system cannot confine them.

    Raises:
        UsageError: no problems, `prompts_per_call` below 1, or a problem that cannot be graded.
        UnconfinedCodeError: grading runs programs, and this system cannot confine them.
    """
    if not problems:
        raise UsageError("there are no problems to evaluate; give at least one")
    step = len(problems) if prompts_per_call is None else prompts_per_call
    for problem in problems:
        check_gradable(problem, f"the problem {problem.prompt!r}")
    if step < 1:
        raise UsageError(f"prompts_per_call={step} must be at least 1; give a larger one")
    within = confinement_for(problems, allow_unconfined_code=allow_unconfined_code)
    prompts = [problem.prompt for problem in problems]
    writer(prompts[:1])
    written: list[Answer] = []
    seconds = 0.0
    for first in range(0, len(prompts), step):
        chunk = prompts[first : first + step]
        began = time.perf_counter()
        responses = writer(chunk)
        seconds += time.perf_counter() - began
        assert len(responses) == len(chunk), "the writer left prompts unanswered"
        written += responses
        if on_progress is not None:
            on_progress(len(written), len(prompts))
    correct = _graded(problems, [response.text for response in written], within)
    return Evaluation(name=name, rows=_scores(problems, written, correct), seconds=seconds, decoding=decoding)


def _graded(problems: Sequence[Problem], texts: Sequence[str], within: Confinement | None) -> list[bool]:
    """One verdict a response. Programs run in processes of their own, as many at once as there are cores."""
    if within is None:
        return [grade(problem, text) for problem, text in zip(problems, texts, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda problem, text: grade(problem, text, within), problems, texts))


def _scores(problems: Sequence[Problem], written: list[Answer], correct: list[bool]) -> tuple[Score, ...]:
    """One score a family, then one for each of its tags."""
    results = list(zip(problems, written, correct, strict=True))
    rows = []
    for family in dict.fromkeys(problem.family for problem in problems):
        inside = [result for result in results if result[0].family == family]
        rows.append(_score(family, None, inside))
        for tag in dict.fromkeys(problem.tag for problem, _, _ in inside if problem.tag):
            rows.append(_score(family, tag, [result for result in inside if result[0].tag == tag]))
    return tuple(rows)


def _score(family: str, tag: str | None, results: Sequence[tuple[Problem, Answer, bool]]) -> Score:
    seconds = [response.seconds for _, response, _ in results if response.seconds is not None]
    return Score(
        family=family,
        tag=tag,
        n=len(results),
        correct=sum(right for _, _, right in results),
        tokens=sum(response.tokens for _, response, _ in results),
        forwards=sum(response.forwards for _, response, _ in results),
        seconds=sum(seconds) if len(seconds) == len(results) else None,
        empty=sum(not response.text.strip() for _, response, _ in results),
    )
