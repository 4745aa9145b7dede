"""Right answers count as right, and nothing that merely looks like one does."""

from decimal import Decimal

import pytest

from opdlm.errors import UsageError
from opdlm.evals.graders import GRADERS, check_gradable, extract_code, extract_number, grade
from opdlm.evals.problem import Problem


def question(family, answer, calls=()):
    return Problem(family, "?", "", answer, calls)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("3*4=12. #### 12", "12"),
        ("####12", "12"),
        ("####   12  ", "12"),
        ("####\t12\r\nmore text 99", "12"),
        ("#### 1,234,567", "1234567"),
        ("#### 1 234", "1234"),
        ("#### 1234", "1234"),
        ("#### 007", "7"),
        ("#### 0", "0"),
        ("#### -5", "-5"),
        ("#### -1,000.50", "-1000.5"),
        ("#### 2.0", "2"),
        ("#### 1 #### 2", "2"),
        ("#### 1\nno\n#### 3", "3"),
        ("##### 4", "4"),
    ],
)
def test_number_found(text, number):
    """Without it a right answer could count as wrong for the way in which its number is written."""
    assert extract_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "72",
        "The answer is 72.",
        "### 72",
        "####",
        "#### ",
        "####\n72",
        "#### 72 apples",
        "#### $72",
        "#### 72%",
        "#### 72.",
        "#### 7 2",
        "#### 12,34",
        "#### 1,2345",
        "#### 3/4",
        "#### 5 #### ",
        "#### - 5",
        "#### --5",
        "#### +5",
        "#### 1e3",
        "#### 0x10",
        "#### .",
        "#### nan",
        "#### Infinity",
        "#### ٣",
        "#### ²",
    ],
)
def test_no_number(text):
    """Without it numbers that are no final answer could be graded, by luck as right."""
    assert extract_number(text) is None


def test_maths_uses_the_last_mark_and_the_value():
    """Without it a worked step, or an earlier attempt, could decide."""
    asked = question("maths", "1200")
    assert grade(asked, "600*2=1200. #### 1,200")
    assert grade(asked, "#### 600 #### 01200")
    assert not grade(asked, "#### 1200 #### 600")
    assert not grade(asked, "600*2=1200.")
    assert not grade(asked, "#### 120")


def test_recall_wants_the_whole_word_in_the_first_sentence():
    """Without it longer words, or a list of guesses in later sentences, would pass."""
    asked = question("recall", "Isk")
    assert grade(asked, "The river of Beldan is the Isk.")
    assert grade(asked, "\n isk")
    assert grade(asked, "(Isk), I think")
    assert not grade(asked, "The river of Beldan is the Isko.")
    assert not grade(asked, "The river of Beldan is the Brisk.")
    assert not grade(asked, "It is the Arn. Or the Isk.")
    assert not grade(asked, "It is the Arn\nIsk")
    assert not grade(asked, "")


def test_recall_takes_the_answer_literally():
    """Without it an answer with signs would act as a pattern."""
    assert grade(question("recall", "C++"), "He writes C++ at night")
    assert not grade(question("recall", "a|b"), "a")
    assert grade(question("recall", "3.14"), "It is 3.14, nearly. Or 3.")
    assert not grade(question("recall", "3.14"), "It is 3. Or 3.14")


def test_edit_wants_the_exact_first_line():
    """Without it a near miss would pass, or a right line fail for the spaces around it."""
    asked = question("edit", "ant bag bed")
    assert grade(asked, "ant bag bed")
    assert grade(asked, "\n  ant bag bed \r\nand more")
    assert not grade(asked, "ant bag")
    assert not grade(asked, "ant bag bed bell")
    assert not grade(asked, "ant  bag bed")
    assert not grade(asked, "Ant bag bed")
    assert not grade(asked, "here:\nant bag bed")
    assert not grade(asked, "")


BODY = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{BODY}```",
        f"```\n{BODY}```",
        f"``` py\n{BODY}```\n",
        f"Sure:\n\n```python\n{BODY}```\nIt adds one to `x`.",
        f"```python\n{BODY}",
        f"```python\n{BODY}```\n\n```python\nf(2)\n```",
        f"```python\n{BODY}```".replace("\n", "\r\n"),
        "1. like this\n   ```python\n   def f(x):\n       return x + 1\n   ```",
    ],
)
def test_code_in_a_fence(text):
    """Without it the prose around code would make right code a syntax error."""
    assert extract_code(text) == BODY


@pytest.mark.parametrize("text", ["", BODY, 'def f():\n    return "```"\n', "```"])
def test_code_without_a_fence_is_left_alone(text):
    """Without it plain code could lose a part of itself."""
    assert extract_code(text) == text


def test_code_is_run():
    """Without it code would be judged by its looks, or by its first call alone."""
    asked = question("code", "f", (("f(1)", "2"), ("f(-1)", "0")))
    assert grade(asked, BODY)
    assert grade(asked, f"```python\n{BODY}```")
    assert not grade(asked, "def f(x):\n    return 2\n")
    assert not grade(asked, "def g(x):\n    return x + 1\n")
    assert not grade(asked, "def f(x) return x + 1")
    assert not grade(asked, "")


def test_problems_that_cannot_be_graded_are_refused():
    """Without it a mistake in a task would read as a perfect, or a hopeless, model."""
    with pytest.raises(UsageError, match="poetry"):
        grade(question("poetry", "x"), "x")
    with pytest.raises(UsageError, match="needs calls"):
        grade(question("code", "f"), BODY)
    with pytest.raises(UsageError, match="no number"):
        grade(question("maths", "twelve"), "#### 12")


@pytest.mark.parametrize(
    ("family", "answer", "fault"),
    [
        ("maths", "", "no number"),
        ("recall", " ", "an empty answer"),
        ("recall", "St. Louis", "no first sentence can hold"),
        ("edit", "", "an empty answer"),
        ("edit", "one\ntwo", "more than one line"),
        ("tagged", "", "an empty answer"),
        ("gsm8k", "", "no number"),
        ("gsm8k", "sNaN", "no number"),
        ("svamp", "Infinity", "no number"),
        ("math", "", "math-verify cannot read"),
        ("countdown", "12", "write TARGET from N,N,N"),
        ("countdown", "5 from ", "write TARGET from N,N,N"),
        ("countdown", "4.9 from 1,2", "write TARGET from N,N,N"),
        ("countdown", "-5 from -2,3", "none of the N below 0"),
        ("sudoku", "12", "write 16 or 81 digits"),
        ("sudoku", "\u00b2" * 16, "write 16 or 81 digits"),
        ("sudoku", "5" + "0" * 15, "none above 4"),
        ("sudoku", "11" + "0" * 14, "none twice in a row"),
        ("lambada", "two words", "not one word"),
        ("facts", "", "empty"),
    ],
)
def test_a_reference_that_no_answer_can_reach_is_refused(family, answer, fault):
    """Without it such a problem would count as answered wrongly, whatever the model says, or rightly."""
    if family == "math":
        pytest.importorskip("math_verify")
    with pytest.raises(UsageError, match=rf"^line 7 \({family}\) .*{fault}.*; correct it$"):
        check_gradable(question(family, answer), "line 7")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"tests": "assert ("}, "tests that cannot be read as Python"),
        ({"tests": "assert f(1)", "prelude": "import ("}, "prelude that cannot be read"),
        ({"calls": (("f(1", "1"),)}, "the call 'f\\(1', which is no Python expression"),
        ({"tests": "\0"}, "tests that cannot be read"),
    ],
)
def test_tests_that_no_program_can_pass_are_refused(fields, fault):
    """Without it every program would fail them, and the model seem hopeless."""
    with pytest.raises(UsageError, match=fault):
        check_gradable(Problem("code", "?", "", "f", **fields))
    check_gradable(Problem("code", "?", "", "f", tests="assert f('\\d')", prelude="import re"))


ODD = [
    *(
        "sNaN",
        "NaN",
        "#### sNaN",
        "#### Infinity",
        "\\boxed{NaN}",
        "\\boxed{sNaN}",
        "-",
        "####",
        "<answer>",
        "\\boxed{",
    ),
    *("\0", "\ud800", "#### \u0663", "1" * 5000, "#### " + "9" * 5000, "1or 2", "1is 2 = 3", "1(2)", "1_0 + 2", "0x5"),
    *("lambda: 1", "1 if 2 else 3", "(yield)", "f'{1}'", "-" * 199 + "1", "1" + "/0" * 50, "\\frac{1}{0}", "[" * 150),
]


@pytest.mark.parametrize("family", [name for name, grader in GRADERS.items() if not grader.runs_programs])
def test_odd_texts_are_wrong_and_no_error(family):
    """Without it one odd answer would end an evaluation of hours in a traceback."""
    if family == "math":
        pytest.importorskip("math_verify")
    answer = {"countdown": "7 from 3,4", "sudoku": "0" * 16}.get(family, "42")
    asked = Problem(family, "?", "", answer, plain="?", options=("42", "43"))
    for text in ODD:
        assert not grade(asked, text), text
        assert not grade(asked, f"<answer>{text}</answer>"), text
