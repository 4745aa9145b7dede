"""Right answers count as right, and nothing that merely looks like one does."""

from decimal import Decimal

import pytest

from opdlm.errors import UsageError
from opdlm.evals.graders import extract_code, extract_number, grade
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
