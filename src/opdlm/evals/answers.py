"""Has a model answer a set of problems, takes the time and grades the answers."""

import time
from collections.abc import Callable, Iterator, Sequence

from opdlm.data.prompts import Prompt
from opdlm.errors import UsageError
from opdlm.evals.graders import check_gradable, grade
from opdlm.evals.problem import Problem
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
) -> Evaluation:
    """Has `writer` answer `problems` and grades each answer as it comes.

    One call with the first prompt goes before, uncounted, so that nobody pays for the first use of kernels and caches.

    Args:
        name: what is evaluated, as tables show it.
        writer: writes the responses.
        problems: at least one.
        decoding: how the writer decodes, for the record.
        on_progress: called with (responses written, problems), first with none written.
        on_answer: called with each answer once it is graded, in the order in which they are finished.

    Raises:
        UsageError: no problems, or a problem that cannot be graded.
    """
    if not problems:
        raise UsageError("there are no problems to evaluate; give at least one")
    for problem in problems:
        check_gradable(problem, f"the problem {problem.prompt!r}")
    prompts = [problem.prompt for problem in problems]
    on_progress(0, len(prompts))
    list(writer(prompts[:1]))
    found: dict[int, tuple[Problem, Answer, bool]] = {}
    watch = _Stopwatch()
    for index, answer in watch.timed(writer, prompts):
        problem = problems[index]
        correct = grade(problem, answer.text)
        found[index] = problem, answer, correct
        on_answer(_graded(name, decoding, index, problem, answer, correct))
        on_progress(len(found), len(prompts))
    assert len(found) == len(prompts), "the writer left prompts unanswered"
    rows = _scores([found[index] for index in range(len(problems))])
    return Evaluation(name=name, rows=rows, seconds=watch.seconds, decoding=decoding)


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
    )
