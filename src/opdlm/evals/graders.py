"""Says whether a response is right, by the rules of its task family: a table of graders."""

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from opdlm.errors import UsageError
from opdlm.evals import suite_graders as suites
from opdlm.evals.interpreter import NotInterpretedError, call_function
from opdlm.evals.problem import Problem
from opdlm.evals.sandbox import run_calls, run_tests
from opdlm.evals.sandbox_confinement import Confinement
from opdlm.evals.sandbox_search import confinement

# Wall-clock seconds for one response's code. Far more than a right one needs, so that a busy machine fails none.
CODE_TIMEOUT_S = 5.0

# Digits, or groups of three behind commas or spaces ("1,234", "1 234"), and decimals.
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def extract_number(text: str) -> Decimal | None:
    """The number that stands alone on its line behind the last `####`, or None.

    The final-answer mark of GSM8K (arXiv 2110.14168), whose references hold the bare number. Commas or spaces between
    groups of three, spaces around the number, leading zeros, a minus sign and decimals are fine. Nothing else is: no
    unit, no currency, no second number, and no number that stands elsewhere. This is stricter than the regular
    expression published with GSM8K, which ignores what follows the number.
    """
    _, mark, rest = text.rpartition("####")
    line = rest.strip(" \t").partition("\n")[0].strip()
    if not mark or not _NUMBER.fullmatch(line):
        return None
    return Decimal(line.replace(",", "").replace(" ", ""))


def extract_code(text: str) -> str:
    """The content of the first ``` fence, or the whole text where there is none.

    The fence may name a language, be indented (its content is then shifted to the left), or never be closed.
    """
    fenced = _FENCED.search(text.replace("\r\n", "\n"))
    return textwrap.dedent(fenced[1]) if fenced else text


def _maths(problem: Problem, response: str, within: Confinement | None) -> bool:
    return extract_number(response) == extract_number(f"#### {problem.answer}")


def _maths_fault(problem: Problem) -> str | None:
    if extract_number(f"#### {problem.answer}") is None:
        return f"has the answer {problem.answer!r}, which is no number"
    return None


def _recall(problem: Problem, response: str, within: Confinement | None) -> bool:
    first_sentence = _SENTENCE_END.split(response.strip(), maxsplit=1)[0]
    # Not \b: an answer that begins or ends with a sign has no word boundary there.
    word = rf"(?<!\w){re.escape(problem.answer.strip())}(?!\w)"
    return re.search(word, first_sentence, re.IGNORECASE) is not None


def _edit(problem: Problem, response: str, within: Confinement | None) -> bool:
    return response.strip().partition("\n")[0].strip() == problem.answer.strip()


def _answer_fault(problem: Problem) -> str | None:
    return None if problem.answer.strip() else "has an empty answer"


def _recall_fault(problem: Problem) -> str | None:
    if _SENTENCE_END.search(problem.answer.strip()):
        return f"has the answer {problem.answer!r}, which no first sentence can hold: it ends one"
    return _answer_fault(problem)


def _edit_fault(problem: Problem) -> str | None:
    if "\n" in problem.answer.strip():
        return f"has the answer {problem.answer!r}, which is more than one line"
    return _answer_fault(problem)


def _tagged(problem: Problem, response: str, within: Confinement | None) -> bool:
    """The last pair of tags, and the comparison of reasoning-gym, with no part credit."""
    found = _TAGGED.findall(response)
    return bool(found) and found[-1].strip() == problem.answer.strip()


def _code(problem: Problem, response: str, within: Confinement | None) -> bool:
    source, prelude = extract_code(response), problem.prelude
    if problem.interpreted:
        return all(_interpreted(source, call, expected) for call, expected in problem.calls)
    if problem.calls:
        return run_calls(source, problem.calls, prelude=prelude, within=within, timeout_s=CODE_TIMEOUT_S).all_passed
    return _passes_tests(problem, source, within)


def _passes_tests(problem: Problem, source: str, within: Confinement | None) -> bool:
    tests, entry, prelude = problem.tests, problem.answer, problem.prelude
    return run_tests(source, tests, entry, prelude=prelude, within=within, timeout_s=CODE_TIMEOUT_S).all_passed


def _humaneval(problem: Problem, response: str, within: Confinement | None) -> bool:
    return _passes_tests(problem, suites.humaneval_program(problem, response), within)


def _mbpp(problem: Problem, response: str, within: Confinement | None) -> bool:
    return _passes_tests(problem, suites.mbpp_program(problem, response), within)


def _interpreted(source: str, call: str, expected: str) -> bool:
    try:
        return bool(call_function(source, call) == ast.literal_eval(expected))
    except NotInterpretedError:
        return False


def _code_fault(problem: Problem) -> str | None:
    if bool(problem.calls) == bool(problem.tests):
        return "needs calls (pairs of a call and the repr of its result) or tests (Python with asserts), and not both"
    if problem.tests and problem.interpreted:
        return "has tests, and cannot be interpreted"
    parts = {"prelude": problem.prelude, "tests": problem.tests}
    fault = next((name for name, source in parts.items() if not _is_python(source)), None)
    if fault is not None:
        return f"has {fault} that cannot be read as Python"
    call = next((call for call, _ in problem.calls if not _is_python(call, "eval")), None)
    return None if call is None else f"has the call {call!r}, which is no Python expression"


def _tests_fault(problem: Problem) -> str | None:
    if not problem.tests or not problem.answer:
        return "needs tests and the name of the function"
    return None if _is_python(problem.tests) else "has tests that cannot be read as Python"


def _is_python(source: str, mode: Literal["exec", "eval"] = "exec") -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as for "\d" in a text: the sandbox runs it all the same
            ast.parse(source, mode=mode)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


@dataclass(frozen=True)
class Grader:
    """How one family is graded.

    Attributes:
        grade: problem, response and where a program runs -> whether it is right.
        fault: what makes a problem of this family impossible to grade, as the rest of a sentence; None if nothing does.
        runs_programs: whether grading runs what the model wrote.
    """

    grade: Callable[[Problem, str, Confinement | None], bool]
    fault: Callable[[Problem], str | None]
    runs_programs: bool = False


def _by_text(grade: Callable[[Problem, str], bool], fault: Callable[[Problem], str | None]) -> Grader:
    return Grader(lambda problem, response, within: grade(problem, response), fault)


GRADERS: dict[str, Grader] = {
    # the number behind the last `####` equals the answer (`extract_number`)
    "maths": Grader(_maths, _maths_fault),
    # the first sentence holds the answer as a whole word, in any letter case
    "recall": Grader(_recall, _recall_fault),
    # the first line that is not blank equals the answer, spaces at its ends aside
    "edit": Grader(_edit, _edit_fault),
    # what stands in the last <answer> </answer> equals the answer, spaces at its ends aside
    "tagged": Grader(_tagged, _answer_fault),
    # every call of the function returns the expected value, or the tests pass, in the sandbox or the interpreter
    "code": Grader(_code, _code_fault, runs_programs=True),
    # the field's tests, each by the function of its name in `suite_graders`
    "gsm8k": _by_text(suites.ends_in_number, suites.number_fault),
    "svamp": _by_text(suites.ends_in_number, suites.number_fault),
    "math": _by_text(suites.equal_maths, suites.maths_fault),
    "humaneval": Grader(_humaneval, _tests_fault, runs_programs=True),
    "mbpp": Grader(_mbpp, _tests_fault, runs_programs=True),
    "countdown": _by_text(suites.makes_target, suites.countdown_fault),
    "sudoku": _by_text(suites.fills_grid, suites.sudoku_fault),
    "choice": _by_text(suites.chosen, suites.choice_fault),
    "lambada": _by_text(suites.first_word, suites.word_fault),
    "facts": _by_text(suites.names_answer, suites.name_fault),
}


def check_gradable(problem: Problem, where: str = "a problem") -> None:
    """Raises UsageError if the family is unknown or the problem lacks what its grader needs; `where` names it."""
    if problem.family not in GRADERS:
        raise UsageError(f"{where} has the family {problem.family!r}; use one of {', '.join(GRADERS)}")
    fault = GRADERS[problem.family].fault(problem)
    if fault is not None:
        raise UsageError(f"{where} ({problem.family}) {fault}; correct it")


def confinement_for(problems: Sequence[Problem], *, allow_unconfined_code: bool = False) -> Confinement | None:
    """Where the programs that answer `problems` will run; None if grading them runs none.

    Raises:
        UnconfinedCodeError: this system cannot confine them, and nobody allowed to do without.
    """
    running = {family for family, grader in GRADERS.items() if grader.runs_programs}
    if not any(problem.family in running and not problem.interpreted for problem in problems):
        return None
    return confinement(allow_unconfined=allow_unconfined_code)


def grade(problem: Problem, response: str, within: Confinement | None = None) -> bool:
    """Whether the response is right, by the rules of GRADERS.

    Args:
        within: how a program is kept apart; the strongest way of this system if not given.

    Raises:
        UsageError: for what `check_gradable` refuses.
        UnconfinedCodeError: a program would run, `within` is not given, and this system cannot confine it.
    """
    check_gradable(problem)
    return GRADERS[problem.family].grade(problem, response, within)
