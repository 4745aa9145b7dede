"""The field's tests: right answers pass however they are written, and nothing that merely looks like one does."""

from decimal import Decimal
from pathlib import Path

import pytest

from opdlm.errors import UsageError
from opdlm.evals.final_answers import last_boxed, last_number, last_tagged
from opdlm.evals.graders import check_gradable, grade
from opdlm.evals.problem import Problem
from opdlm.evals.puzzles import read_grid, solves_countdown, solves_sudoku
from opdlm.evals.suite_graders import humaneval_program, mbpp_program
from opdlm.evals.suites.suite import load
from opdlm.evals.suites.table import SUITES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def question(family, answer, **fields):
    return Problem(family, "?", "", answer, **fields)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"so \boxed{72} eggs, not 73", "72"),
        (r"\boxed{1} then \boxed{\$1{,}234.50}", "1234.5"),
        (r"\boxed{\text{about } 12}", "12"),
        ("3 * 4 = 12\n#### 12\nThe end of 2 lines", "12"),
        ("#### $1,000", "1000"),
        ("The answer is 18.", "18"),
        ("She has 3 left, so it is −4", "-4"),
        ("It costs $2.50", "2.5"),
        ("16 - 3 - 4 = 9 and 9 * 2 = 18", "18"),
        ("in 1,2345", "2345"),
    ],
)
def test_the_number_at_the_end(text, number):
    """Without it a right answer could count as wrong for how it is marked, or a step decide in its place."""
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no number", r"\boxed{twelve} 12", "#### \n", "x1 y2", "v1.2.x"])
def test_no_number_at_the_end(text):
    """Without it part of a name, or a number beside an answer in words, would be the answer."""
    assert last_number(text) is None


def test_boxes_and_tags():
    """Without it braces inside an answer would cut it, or an unclosed box swallow the text behind it."""
    assert last_boxed(r"\boxed{1} \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed {a}") == "a"
    assert last_boxed(r"\boxed{3} and then \boxed{open") == "3"
    assert last_boxed("boxed{3}") is None
    assert last_tagged("<answer>1</answer> <ANSWER>\n2</ANSWER>") == "\n2"
    assert last_tagged("<answer>1") is None


def test_gsm8k_and_svamp():
    """Without it a wrong number, or a right one that is not the last, would pass."""
    for family in ("gsm8k", "svamp"):
        assert grade(question(family, "1,200"), "so she pays 1200.0")
        assert not grade(question(family, "1200"), "1200 is what she had; now 600")
        assert not grade(question(family, "1200"), "12000")
        assert not grade(question(family, "1200"), "")
        with pytest.raises(UsageError, match="no number"):
            check_gradable(question(family, "twelve"))


def test_maths_by_value():
    """Without it an equal expression would fail for its form, or another one pass."""
    pytest.importorskip("math_verify")
    half = question("math", r"\frac{1}{2}")
    assert grade(half, r"Thus \boxed{0.5}.")
    assert grade(half, r"Thus \boxed{\dfrac{2}{4}}, not \frac{1}{3}")
    assert grade(half, "the answer is $\\frac12$")
    assert grade(question("math", r"(3, \frac{\pi}{2})"), r"\boxed{\left( 3, \frac{\pi}{2} \right)}")
    assert grade(question("math", r"\text{Evelyn}"), r"\boxed{\text{Evelyn}}")
    for wrong in ("", r"\boxed{\frac{1}{3}}", r"\frac{1}{2} was wrong, so \boxed{2}", r"\boxed{", r"\boxed{}", "half"):
        assert not grade(half, wrong), wrong


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("100 - (93 - 30) - 14", False),  # a number that was not given
        ("30 + 93 - 100", True),
        ("93 - (100 - 30) = 23", True),
        ("(30 + 93) - 100", True),
        (r"30 + 93 \times 1 - 100", False),
        ("23", False),
        ("30 + 93 - 100 + 30 - 30", False),
        ("30 - 100", False),
        ("__import__('os').system('true')", False),
        ("30 + 93 - 100.0", False),
        ("30 / (93 - 93) + 100", False),
        ("9 ** 9 ** 9 ** 9", False),
        ("(" * 500, False),
        ("", False),
        ("30,93,100", False),
        ("True + 22", False),
    ],
)
def test_countdown(expression, right):
    """Without it a model could reach the target by numbers that it was not given, or by a program."""
    assert solves_countdown(expression, [30, 100, 93], 23) is right
    assert grade(question("countdown", "23 from 30,100,93"), f"First ... <answer>{expression}</answer>") is right
    assert grade(question("countdown", "23 from 30,100,93"), f"{expression}</answer> and more") is right


def test_countdown_is_exact():
    """Without it rounding would decide: 1 / 3 * 3 is 1, and 0.1 + 0.2 is not."""
    assert solves_countdown("1 ÷ 3 × 3", [1, 3, 3], 1)
    assert not solves_countdown("7 / 3", [7, 3], 2)


PUZZLE, SOLVED = "3102200002100320", "3142243142131324"


def test_sudoku():
    """Without it a grid that breaks a rule or changes what was given would pass."""
    asked = question("sudoku", PUZZLE)
    rows = "\n".join(" ".join(SOLVED[i : i + 4]) for i in range(0, 16, 4))
    for right in (SOLVED, rows, f"so <answer>{SOLVED}</answer>", rf"\boxed{{{SOLVED}}}", f"{PUZZLE}\n\n{SOLVED}."):
        assert grade(asked, right), right
    swapped = SOLVED.replace("1", "x").replace("4", "1").replace("x", "4")  # a sudoku, but not this one
    assert solves_sudoku(swapped, "0" * 16)
    for wrong in ("", PUZZLE, swapped, SOLVED[:-1], SOLVED + "1", SOLVED[::-1], "1234" * 4, f"{SOLVED} {PUZZLE}"):
        assert not grade(asked, wrong), wrong
    assert read_grid("12 34", 4) == "1234"
    assert read_grid("12345", 4) is None


def test_lambada():
    """Without it a longer word, another letter case, or a later word would pass."""
    asked = question("lambada", "Anna")
    for right in ("Anna", " Anna.", "\nAnna said", ' "Anna"'):
        assert grade(asked, right), right
    for wrong in ("", "anna", "Annas", "Annabel", "dear Anna", "Anna's", "..."):
        assert not grade(asked, wrong), wrong


def test_facts():
    """Without it a list of guesses, or a longer name, would pass, or an accent would fail a right one."""
    asked = Problem("facts", "What is the capital of Brazil?", "", "Brasilia", options=("Brasilia", "Rio", "Lima"))
    for right in ("Brasília", "The capital of Brazil is Brasilia.", "brasilia\nnot Lima"):
        assert grade(asked, right), right
    for wrong in ("", "Rio", "Brasilia or Lima", "Brasiliana", "I do not know\nBrasilia"):
        assert not grade(asked, wrong), wrong
    money = Problem("facts", "What is the currency of Canada?", "", "Dollar", options=("Dollar", "Euro"))
    assert grade(money, "Canadian dollars")
    mexico = Problem("facts", "Which is the capital of Mexico?", "", "Mexico City", options=("Mexico City", "Mexico"))
    assert grade(mexico, "Mexico City is the capital of Mexico")


def test_choice():
    """Without it a problem whose answer is not among its options would always be wrong."""
    asked = question("choice", "b", plain="Q", options=("a", "b"))
    assert grade(asked, "b")
    assert not grade(asked, "a")
    with pytest.raises(UsageError, match="its answer among them"):
        check_gradable(question("choice", "c", plain="Q", options=("a", "b")))


CODE = 'from typing import List\n\n\ndef one_more(x: int) -> int:\n    """Adds one."""\n'
BODY = "    return x + 1\n"


def test_humaneval_programs():
    """Without it prose, a second function or a test of the model's own would make right code fail."""
    asked = question("humaneval", "one_more", prelude=CODE, tests="def check(f):\n    assert f(1) == 2\n")
    whole = CODE + BODY
    for right in (
        BODY,
        f"{BODY}\n\nprint(one_more('x'))",
        f"{BODY}\ndef other(:",
        f"Sure!\n```python\n{whole}```\nDone (def one_more(x)).",
        whole,
        f"```python\nfrom os import nothing_here\n```\n```python\n{whole}```",
        f"{whole}".replace("\n", "\r\n"),
    ):
        assert grade(asked, right), right
    for wrong in ("", "    return x\n", "    pass", "I cannot", f"```python\n{CODE}    return x\n```"):
        assert not grade(asked, wrong), wrong
    assert humaneval_program(asked, BODY) == whole


def test_mbpp_programs():
    """Without it what follows [DONE], or prose around a block, would be run."""
    asked = question("mbpp", "f", tests="assert f(1) == 2")
    assert grade(asked, "[BEGIN]\ndef f(x):\n    return x + 1\n[DONE]\nassert (")
    assert grade(asked, "Here:\n```python\ndef f(x):\n    return x + 1\n```\nBye")
    assert not grade(asked, "def f(x):\n    return x\n")
    assert not grade(asked, "")
    assert mbpp_program(asked, "a\n[DONE]\nb") == "a\n"


# --- real references -------------------------------------------------------------------------------------------


def shared(*parts):
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"needs {'/'.join(parts)} in a folder `shared/data` beside the checkout")
    return str(path)


def test_references_of_the_data_sets_pass():
    """Without it a grader could fail answers that the data sets themselves give."""
    gsm8k = load(SUITES["gsm8k"], shared("gsm8k", "test.jsonl"))
    assert len(gsm8k) == 1319
    assert all(grade(problem, problem.response) for problem in gsm8k)
    assert all(grade(problem, problem.response.replace("####", "The answer is")) for problem in gsm8k)
    assert not any(grade(problem, problem.answer + "1") for problem in gsm8k)
    svamp = load(SUITES["svamp"], shared("svamp", "SVAMP.json"))
    assert len(svamp) == 1000
    assert all(grade(problem, f"It is {problem.answer}.") for problem in svamp)
    sudoku = load(SUITES["sudoku"], shared("countdown_sudoku", "4x4_test_sudoku.csv"))
    assert all(grade(problem, problem.response) for problem in sudoku)
    assert not any(grade(problem, problem.response[::-1] + "0") for problem in sudoku)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), [("humaneval", "HumanEval.jsonl.gz"), ("mbpp", "mbpp.jsonl")])
def test_reference_programs_pass(name, parts):
    """Without it how a suite reads its data could fail right programs, or pass empty ones."""
    problems = load(SUITES[name], shared(name, parts))
    assert len(problems) == {"humaneval": 164, "mbpp": 500}[name]
    for problem in problems[::40]:
        assert grade(problem, f"```python\n{problem.response}\n```"), problem.prompt
        assert not grade(problem, f"```python\ndef {problem.answer}(*_):\n    pass\n```"), problem.prompt
