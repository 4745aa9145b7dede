"""The answers of `opdlm eval --suite` that are there already, and where each new one goes, at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdlm.cli.partial import as_object, damaged, finish, kept_lines, more_lines, partial_of, where_of, whole_lines
from opdlm.cli.terminal import make_console
from opdlm.errors import OpdlmError, RecordError
from opdlm.records.evaluation import GradedAnswer

if TYPE_CHECKING:
    from opdlm.evals.problem import Problem
    from opdlm.evals.suites.suite import Suite

Kept = tuple[list[GradedAnswer], Callable[[GradedAnswer], None]]
"""Answers of earlier calls, and what takes each new one."""


@contextmanager
def unkept() -> Iterator[Kept]:
    """No file."""
    yield [], lambda answer: None


@contextmanager
def growing(path: Path, about: dict[str, Any]) -> Iterator[Kept]:
    """The file at `path` while it grows; it is complete if the body succeeds."""
    partial = partial_of(path)
    kept = _read(kept_lines(path, about), partial)
    try:
        with closing(more_lines(path, about)) as lines:
            yield kept, lambda answer: lines.write(answer.to_json())
    except (KeyboardInterrupt, OpdlmError):
        if partial.exists():
            text = f"the answers so far are in {partial}; go on with --resume"
            make_console(stderr=True).print(text, markup=False, soft_wrap=True)
        raise
    finish(path)


@contextmanager
def finished(
    path: Path, tests: "Sequence[tuple[Suite, Sequence[Problem]]]", names: Mapping[str, str]
) -> Iterator[Kept]:
    """A complete file whose numbers are missing. `names`: the model of each decoding, "" the original's.

    The settings it was made with are gone with the numbers; RecordError if it does not answer these very problems.
    """
    places = ((f"{path}, line {number}", line) for number, line in enumerate(whole_lines(path), 1))
    answers = [GradedAnswer.from_json(as_object(line, where), where) for where, line in places]
    if not _answer_all(answers, tests, names):
        raise RecordError(
            f"{path} is complete, but not with the answers of this command, so its numbers cannot be made; call as "
            "before, or remove it to ask anew"
        )

    text = f"the numbers are made from the answers in {path}; nothing is asked again"
    make_console(stderr=True).print(text, markup=False, soft_wrap=True)

    def refuse(answer: GradedAnswer) -> None:
        raise AssertionError("every problem was answered")

    yield answers, refuse


def _answer_all(
    answers: Sequence[GradedAnswer],
    tests: "Sequence[tuple[Suite, Sequence[Problem]]]",
    names: Mapping[str, str],
) -> bool:
    from opdlm.evals.suites.run import counting

    asked = {
        (decoding, suite.name, number): problem
        for decoding in names
        for suite, problems in tests
        for number, problem in (counting(suite, problems, answers) if decoding else dict(enumerate(problems))).items()
    }
    found = {(one.decoding, one.family, one.number): one for one in answers}
    return (
        len(found) == len(answers)
        and found.keys() == asked.keys()
        and all(
            one.model == names[one.decoding]
            and one.expected == asked[place].answer
            and one.prompt in (asked[place].prompt, asked[place].plain)
            for place, one in found.items()
        )
    )


def _read(lines: Sequence[dict[str, Any]], partial: Path) -> list[GradedAnswer]:
    """RecordError for a line that holds no answer, or the one of an earlier line again."""
    kept: dict[tuple[str, str, int], GradedAnswer] = {}
    for index, line in enumerate(lines):
        where = where_of(partial, index)
        one = GradedAnswer.from_json(line, where)
        if (one.decoding, one.family, one.number) in kept:
            raise damaged(where, "repeats an earlier answer")
        kept[one.decoding, one.family, one.number] = one
    return list(kept.values())
