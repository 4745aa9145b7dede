"""Has a model answer a set of problems, takes the time and grades the answers."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from opdlm.data.prompts import Prompt
from opdlm.errors import UsageError
from opdlm.evals.graders import check_gradable, confinement_for, grade
from opdlm.evals.problem import Problem
from opdlm.evals.sandbox_confinement import Confinement
from opdlm.evals.writers import Answer, Writer
from opdlm.records.evaluation import Evaluation, GradedAnswer, Score


def answered(
    name: str,
    writer: Writer,
    problems: Sequence[Problem],
    *,
    decoding: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_answer: Callable[[GradedAnswer], None] = lambda answer: None,
    allow_unconfined_code: bool = False,
) -> Evaluation:
    """Has `writer` answer `problems` and grades each answer as it comes.

    One call with the first prompt goes before, uncounted, so that nobody pays for the first use of kernels and caches.

    Args:
        name: what is evaluated, as tables show it.
        writer: writes the responses.
        problems: at least one.
        decoding: how the writer decodes, for the record.
        on_progress: called with (responses written, problems), first with none written.
        on_answer: called with each answer once it is graded: at once, or where programs are run, when all are written.
        allow_unconfined_code: run programs with the user's own rights where the system cannot confine them.

    Raises:
        UsageError: no problems, or a problem that cannot be graded.
        UnconfinedCodeError: grading runs programs, and this system cannot confine them.
    """
    if not problems:
        raise UsageError("there are no problems to evaluate; give at least one")
    for problem in problems:
        check_gradable(problem, f"the problem {problem.prompt!r}")
    within = confinement_for(problems, allow_unconfined_code=allow_unconfined_code)
    prompts = [problem.prompt for problem in problems]
    on_progress(0, len(prompts))
    list(writer(prompts[:1]))
    answers: dict[int, Answer] = {}
    correct: dict[int, bool] = {}

    def settle(index: int, verdict: bool) -> None:
        correct[index] = verdict
        on_answer(_graded(name, decoding, index, problems[index], answers[index], verdict))

    watch = _Stopwatch()
    for index, answer in watch.timed(writer, prompts):
        answers[index] = answer
        if within is None:
            settle(index, grade(problems[index], answer.text))
        on_progress(len(answers), len(prompts))
    assert len(answers) == len(prompts), "the writer left prompts unanswered"
    if within is not None:
        for index, verdict in _verdicts(problems, answers, within):
            settle(index, verdict)
    rows = _scores([(problem, answers[index], correct[index]) for index, problem in enumerate(problems)])
    return Evaluation(name=name, rows=rows, seconds=watch.seconds, decoding=decoding)


def _verdicts(
    problems: Sequence[Problem], answers: Mapping[int, Answer], within: Confinement
) -> Iterator[tuple[int, bool]]:
    """Programs run in processes of their own, as many at once as there are cores; not while answers are timed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from enumerate(
            pool.map(lambda index: grade(problems[index], answers[index].text, within), range(len(problems)))
        )


class _Stopwatch:
    """Counts the time in which answers are written, not that in which they are graded and shown."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, writer: Writer, prompts: list[Prompt]) -> Iterator[tuple[int, Answer]]:
        """The writer's answers."""
        began = time.perf_counter()
        for found in writer(prompts):
            self.seconds += time.perf_counter() - began
            yield found
            began = time.perf_counter()
        self.seconds += time.perf_counter() - began


def _graded(name: str, decoding: str, index: int, problem: Problem, answer: Answer, correct: bool) -> GradedAnswer:
    return GradedAnswer(
        name=name,
        decoding=decoding,
        number=index,
        family=problem.family,
        tag=problem.tag,
        prompt=problem.prompt,
        response=answer.text,
        expected=problem.answer,
        calls=problem.calls,
        correct=correct,
        tokens=answer.tokens,
        forwards=answer.forwards,
    )


def _scores(results: Sequence[tuple[Problem, Answer, bool]]) -> tuple[Score, ...]:
    """One score a family, then one for each of its tags."""
    rows = []
    for family in dict.fromkeys(problem.family for problem, _, _ in results):
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
