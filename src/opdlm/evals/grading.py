"""Says whether a response is right, by the rules of its task family.

Works on anything that has the attributes of `Problem`, so that it grades the playground and any other task alike.
"""

import re
import textwrap
from decimal import Decimal
from typing import Protocol

from opdlm.errors import UsageError
from opdlm.evals.sandbox import run_python

# Wall-clock seconds for one response's code. Far more than a right one needs, so that a busy machine fails none.
CODE_TIMEOUT_S = 5.0

# Digits, or groups of three behind commas or spaces ("1,234", "1 234"), and decimals.
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?\n]")


class Problem(Protocol):
    """What grading and evaluation need to know of a question.

    Attributes:
        family: "maths", "recall", "edit" or "code"; decides how it is graded.
        prompt: the user's message, plain text.
        response: a complete reference response.
        answer: what grading looks for; for code the name of the function.
        calls: for code, pairs of (call expression, repr of the expected result); else empty.
        tag: a sub-group that is reported on its own, or "".
    """

    @property
    def family(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def response(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def calls(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def tag(self) -> str: ...


def grade(problem: Problem, response_text: str) -> bool:
    """Whether the response is right.

    - maths: the number behind the last `####` equals the answer (`extract_number`).
    - recall: the first sentence holds the answer as a whole word, in any letter case.
    - edit: the first line that is not blank equals the answer, spaces at its ends aside.
    - code: every call of the function returns the expected value, in the sandbox.

    Raises:
        UsageError: the family is unknown, a maths answer is no number, or a code problem has no calls.
    """
    match problem.family:
        case "maths":
            return _grade_maths(problem, response_text)
        case "recall":
            return _grade_recall(problem, response_text)
        case "edit":
            return response_text.strip().partition("\n")[0].strip() == problem.answer
        case "code":
            return _grade_code(problem, response_text)
    raise UsageError(f"no rule grades the family {problem.family!r}; use maths, recall, edit or code")


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


def _grade_maths(problem: Problem, response_text: str) -> bool:
    expected = extract_number(f"#### {problem.answer}")
    if expected is None:
        raise UsageError(f"the answer {problem.answer!r} of a maths problem is no number; correct the problem")
    return extract_number(response_text) == expected


def _grade_recall(problem: Problem, response_text: str) -> bool:
    first_sentence = _SENTENCE_END.split(response_text.strip(), maxsplit=1)[0]
    # Not \b: an answer that begins or ends with a sign has no word boundary there.
    word = rf"(?<!\w){re.escape(problem.answer)}(?!\w)"
    return re.search(word, first_sentence, re.IGNORECASE) is not None


def _grade_code(problem: Problem, response_text: str) -> bool:
    if not problem.calls:
        raise UsageError(f"the code problem {problem.prompt!r} has no calls to check; add some")
    return run_python(extract_code(response_text), problem.calls, timeout_s=CODE_TIMEOUT_S).all_passed
