"""How the field's tests are graded: a function of a problem and a response for each."""

import re
import threading
import unicodedata
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from opdlm.errors import MissingExtraError
from opdlm.evals.final_answers import last_boxed, last_number, last_tagged
from opdlm.evals.problem import Problem
from opdlm.evals.puzzles import can_be_sudoku, read_grid, solves_countdown, solves_sudoku

_MATHS_TIMEOUT_S = 60  # wall clock: far more than an expression needs, so that a busy machine fails none
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```", "\n@")
_WORD = re.compile(r"\w+(?:['’\-]\w+)*")
_FIRST_WORD = re.compile(rf"\s*[^\w\s]*\s*({_WORD.pattern})")
_COUNTDOWN = re.compile(r"(-?[0-9]{1,18}) from ([0-9]{1,18}(?:, ?[0-9]{1,18})*)")


def ends_in_number(problem: Problem, response: str) -> bool:
    """GSM8K and SVAMP: the number that the response ends in equals the answer."""
    found = last_number(response)
    return found is not None and found == _finite(problem.answer)


def number_fault(problem: Problem) -> str | None:
    """A reference that is no number."""
    if _finite(problem.answer) is None:
        return f"has the answer {problem.answer!r}, which is no number"
    return None


def _finite(text: str) -> Decimal | None:
    """None for NaN and infinity too: no response can hold them, and to compare a signalling NaN is an error."""
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def equal_maths(problem: Problem, response: str) -> bool:
    """MATH: what the last box holds, else the last expression, equals the answer as math-verify has it."""
    check_math_verify()
    from math_verify import verify

    boxed = last_boxed(response)
    found = _expressions(response if boxed is None else f"\\boxed{{{boxed}}}")
    return bool(found) and verify(_reference(problem.answer), found, timeout_seconds=_timeout_s())


def maths_fault(problem: Problem) -> str | None:
    """A reference that math-verify cannot read."""
    check_math_verify()
    if not _reference(problem.answer):
        return f"has the answer {problem.answer!r}, which math-verify cannot read"
    return None


@lru_cache(maxsize=10_000)
def _reference(answer: str) -> list[Any]:
    return _expressions(f"\\boxed{{{answer}}}")


def _expressions(text: str) -> list[Any]:
    from math_verify import parse

    return parse(text, parsing_timeout=_timeout_s())  # type: ignore[arg-type]


def _timeout_s() -> int | None:
    """None where math-verify, which stops an expression that takes for ever by a signal, cannot have one."""
    return _MATHS_TIMEOUT_S if threading.current_thread() is threading.main_thread() else None


def check_math_verify() -> None:
    """Raises MissingExtraError where it is not installed."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "MATH is graded by math-verify, which is not installed: pip install 'opdlm[eval]'"
        ) from error


def makes_target(problem: Problem, response: str) -> bool:
    """Countdown: the answer is "TARGET from N,N,N"; the expression stands in <answer>, a box, or on the last line."""
    lines = [line for line in response.splitlines() if line.strip()]
    expression = _answer_tag(response) or last_boxed(response) or (lines[-1] if lines else "")
    asked = _COUNTDOWN.fullmatch(problem.answer)
    return asked is not None and solves_countdown(expression, [int(one) for one in asked[2].split(",")], int(asked[1]))


def countdown_fault(problem: Problem) -> str | None:
    """Another form, or numbers that no expression can use."""
    if _COUNTDOWN.fullmatch(problem.answer) is None:
        return f"has the answer {problem.answer!r}; write TARGET from N,N,N: whole numbers, none of the N below 0"
    return None


def _answer_tag(response: str) -> str | None:
    """A prompt without a chat template has opened the tag already."""
    return last_tagged(response if "<answer>" in response else f"<answer>{response}")


def fills_grid(problem: Problem, response: str) -> bool:
    """Sudoku: the answer is the puzzle. The grid stands in <answer>, in a box, or is the last one of the text."""
    text = _answer_tag(response) or last_boxed(response) or response
    grid = read_grid(text, len(problem.answer))
    return grid is not None and solves_sudoku(grid, problem.answer)


def sudoku_fault(problem: Problem) -> str | None:
    """A puzzle that no grid can solve."""
    if not can_be_sudoku(problem.answer):
        return (
            f"has the puzzle {problem.answer!r}; write 16 or 81 digits, 0 for an empty cell, none above 4 or 9, none "
            "twice in a row, column or box"
        )
    return None


def first_word(problem: Problem, response: str) -> bool:
    """LAMBADA: the first word of the continuation is the last word of the text, in the same letter case."""
    found = _FIRST_WORD.match(response)
    return found is not None and found[1] == problem.answer


def word_fault(problem: Problem) -> str | None:
    """A reference that is not one word."""
    if _WORD.fullmatch(problem.answer) is None:
        return f"has the answer {problem.answer!r}, which is not one word"
    return None


def names_answer(problem: Problem, response: str) -> bool:
    """Facts: the first line names the answer and none of the answers that are right elsewhere (`options`)."""
    line, answer = _folded(response.strip().partition("\n")[0]), _folded(problem.answer)
    if not _has_words(line, answer):
        return False
    asked, rest = _folded(str(problem.prompt)), line.replace(answer, " ")
    rivals = {_folded(option) for option in problem.options} - {answer}
    return not any(_has_words(rest, rival) for rival in rivals if not _has_words(asked, rival))


def name_fault(problem: Problem) -> str | None:
    """A reference without letters."""
    return None if _folded(problem.answer) else f"has the answer {problem.answer!r}, which is empty"


def _folded(text: str) -> str:
    """Lower case without accents, so that "Brasília" is "brasilia"."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).strip()


def _has_words(text: str, words: str) -> bool:
    """As whole words; a plural s is no other word."""
    return re.search(rf"(?<!\w){re.escape(words)}s?(?!\w)", text) is not None


def chosen(problem: Problem, response: str) -> bool:
    """Multiple choice: the option that was likeliest is the right one."""
    return response == problem.answer


def choice_fault(problem: Problem) -> str | None:
    """An answer that cannot be chosen."""
    if len(problem.options) < 2 or problem.answer not in problem.options or not problem.plain:
        return "needs a text, at least two options, and its answer among them"
    return None


def humaneval_program(problem: Problem, response: str) -> str:
    """The whole program: of a ``` block if it defines the function, else the prompt's code continued.

    A continuation ends before the next thing at the left edge (Chen and others, arXiv 2107.03374, section 2.1).
    """
    text = response.replace("\r\n", "\n")
    code = next((part for part in _FENCED.findall(text) if _defines(part, problem.answer)), None)
    if code is not None:
        return code
    if _defines(text, problem.answer):
        return text
    return problem.prelude + _cut(text)


def mbpp_program(problem: Problem, response: str) -> str:
    """The program: what stands in the first ``` block, else everything up to [DONE] (arXiv 2108.07732)."""
    text = response.replace("\r\n", "\n")
    fenced = _FENCED.search(text)
    code = fenced[1] if fenced else text.partition("[DONE]")[0]
    return code.replace("[BEGIN]", "")


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(name)}\s*\(", code, re.MULTILINE) is not None


def _cut(text: str) -> str:
    ends = [place for stop in _STOPS if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
