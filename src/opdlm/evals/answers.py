"""Has a model answer a set of problems, takes the time and grades the answers."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from opdlm.errors import UsageError
from opdlm.evals.graders import GRADERS, check_gradable, confinement_for
from opdlm.evals.problem import Asked, Problem, as_shown
from opdlm.evals.sandbox_confinement import Confinement
from opdlm.evals.writers import Answer, Writer
from opdlm.records.evaluation import Evaluation, GradedAnswer, Score

_PROGRAMS_AT_ONCE = os.cpu_count() or 1

_T = TypeVar("_T")


def answered(
    name: str,
    writer: Writer,
    problems: Sequence[Problem],
    *,
    decoding: str = "",
    ask: Callable[[Problem], Asked] = lambda problem: problem.prompt,
    numbers: Sequence[int] | None = None,
    kept: Sequence[GradedAnswer] = (),
    warm_up: bool = True,
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
        ask: what the writer reads of a problem.
        numbers: of the problems, for the record; default: from 0.
        kept: answers to these problems that an interrupted evaluation left; they are not asked again.
        warm_up: whether there is that first call.
        on_progress: called with (responses written, problems), first with those that were kept.
        on_answer: called with each new answer once it is graded: at once; where programs are run, some at a time.
        allow_unconfined_code: run programs with the user's own rights where the system cannot confine them.

    Raises:
        UsageError: no problems, or a problem that cannot be graded.
        UnconfinedCodeError: grading runs programs, and this system cannot confine them.
    """
    if not problems:
        raise UsageError("there are no problems to evaluate; give at least one")
    for problem in problems:
        check_gradable(problem, f"the problem {problem.prompt or problem.plain!r}")
    within = confinement_for(problems, allow_unconfined_code=allow_unconfined_code)
    numbered = dict(zip(range(len(problems)) if numbers is None else numbers, problems, strict=True))
    graded = {one.number: one for one in kept}
    open_ = [number for number in numbered if number not in graded]
    asked = [ask(numbered[number]) for number in open_]
    on_progress(len(graded), len(numbered))
    if warm_up and asked:
        list(writer(asked[:1]))
    for some in _groups(_timed(writer, asked), 1 if within is None else _PROGRAMS_AT_ONCE):
        verdicts = _verdicts([(numbered[open_[index]], answer.text) for index, answer, _ in some], within)
        for (index, answer, waited), verdict in zip(some, verdicts, strict=True):
            number = open_[index]
            made = _graded(name, decoding, number, numbered[number], asked[index], answer, waited, verdict)
            graded[number] = made
            on_answer(made)
            on_progress(len(graded), len(numbered))
    assert len(graded) == len(numbered), "the writer left prompts unanswered"
    return evaluation(name, decoding, [graded[number] for number in numbered])


def evaluation(name: str, decoding: str, answers: Sequence[GradedAnswer]) -> Evaluation:
    """What these answers came to; those that were chosen, not written, take no part in the speed."""
    seconds = sum(one.waited for one in answers if not one.scores)
    return Evaluation(name=name, rows=_scores(answers), seconds=seconds, decoding=decoding)


def _groups(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """`itertools.batched` of Python 3.12."""
    left = iter(items)
    while group := list(islice(left, size)):
        yield group


def _timed(writer: Writer, asked: list[Asked]) -> Iterator[tuple[int, Answer, float]]:
    """The writer's answers, each with the seconds since the one before in which it was written, not graded or shown."""
    began = time.perf_counter()
    for index, answer in writer(asked):
        waited = time.perf_counter() - began
        yield index, answer, waited
        began = time.perf_counter()


def _verdicts(pairs: Sequence[tuple[Problem, str]], within: Confinement | None) -> list[bool]:
    """Programs run in processes of their own, as many at once as there are cores; not while answers are timed.

    All else is graded in this thread: math-verify stops by a signal, which other threads do not have.
    """
    graders = [GRADERS[problem.family] for problem, _ in pairs]
    with ThreadPoolExecutor(_PROGRAMS_AT_ONCE) as pool:
        running = [
            pool.submit(grader.grade, problem, text, within) if grader.runs_programs else None
            for grader, (problem, text) in zip(graders, pairs, strict=True)
        ]
        return [
            grader.grade(problem, text, within) if run is None else run.result()
            for run, grader, (problem, text) in zip(running, graders, pairs, strict=True)
        ]


def _graded(
    name: str,
    decoding: str,
    number: int,
    problem: Problem,
    asked: Asked,
    answer: Answer,
    waited: float,
    correct: bool,
) -> GradedAnswer:
    return GradedAnswer(
        name=name,
        decoding=decoding,
        number=number,
        family=problem.family,
        tag=problem.tag,
        prompt=as_shown(asked),
        response=answer.text,
        expected=problem.answer,
        calls=problem.calls,
        correct=correct,
        tokens=answer.tokens,
        forwards=answer.forwards,
        seconds=answer.seconds,
        waited=waited,
        options=problem.options if answer.scores else (),
        scores=answer.scores,
    )


def _scores(answers: Sequence[GradedAnswer]) -> tuple[Score, ...]:
    """One score a family, then one for each of its tags."""
    rows = []
    for family in dict.fromkeys(one.family for one in answers):
        inside = [one for one in answers if one.family == family]
        rows.append(_score(family, None, inside))
        for tag in dict.fromkeys(one.tag for one in inside if one.tag):
            rows.append(_score(family, tag, [one for one in inside if one.tag == tag]))
    return tuple(rows)


def _score(family: str, tag: str | None, answers: Sequence[GradedAnswer]) -> Score:
    """What these answers came to."""
    seconds = [one.seconds for one in answers if one.seconds is not None]
    return Score(
        family=family,
        tag=tag,
        n=len(answers),
        correct=sum(one.correct for one in answers),
        tokens=sum(one.tokens for one in answers),
        forwards=sum(one.forwards for one in answers),
        seconds=sum(seconds) if len(seconds) == len(answers) else None,
        empty=sum(not one.response.strip() for one in answers),
    )
