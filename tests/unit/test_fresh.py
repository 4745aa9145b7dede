"""Problems made anew from a seed."""

import sys

import pytest

from opdlm.errors import MissingExtraError, UsageError
from opdlm.evals.fresh import fresh_problems
from opdlm.evals.graders import grade
from opdlm.evals.problem import Problem

GYM = ("basic_arithmetic", "letter_counting", "number_sequence")


def test_unknown_generators():
    """Without it a typing mistake would end in a traceback."""
    with pytest.raises(UsageError, match="choose gsm-symbolic or reasoning-gym"):
        fresh_problems("gsm", 3)
    with pytest.raises(UsageError, match="at least one"):
        fresh_problems("gsm-symbolic", 0)


@pytest.mark.parametrize(
    ("name", "package"), [("gsm-symbolic", "multilingual_gsm_symbolic"), ("reasoning-gym:x", "reasoning_gym.dataset")]
)
def test_without_the_extra(name, package, monkeypatch):
    """Without it a missing package would end in a traceback."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"opdlm\[fresh\]"):
        fresh_problems(name, 3)


@pytest.mark.parametrize("data_set", GYM)
def test_reasoning_gym(data_set):
    """Without it problems would repeat, change between runs, or have answers that their own grader refuses."""
    pytest.importorskip("reasoning_gym", reason="needs the extra fresh")
    name = f"reasoning-gym:{data_set}"
    problems = fresh_problems(name, 20, seed=1)
    assert problems == fresh_problems(name, 20, seed=1)
    assert problems != fresh_problems(name, 20, seed=2)
    assert len(problems) == 20
    assert all(grade(problem, problem.response) for problem in problems)
    assert not any(grade(problem, problem.response.replace("</", "0</")) for problem in problems)
    with pytest.raises(UsageError, match="did you mean 'basic_arithmetic'"):
        fresh_problems("reasoning-gym:basic_arithmetics", 1)
    with pytest.raises(UsageError, match="one right answer"):
        fresh_problems("reasoning-gym:countdown", 1)


def test_gsm_symbolic():
    """Without it answers could be no numbers, or every model could know the problems from their first version."""
    package = pytest.importorskip("multilingual_gsm_symbolic", reason="needs the extra fresh, and Python 3.12")
    problems = fresh_problems("gsm-symbolic", 3, seed=1)
    assert problems == fresh_problems("gsm-symbolic", 3, seed=1)
    assert problems != fresh_problems("gsm-symbolic", 3, seed=2)
    assert len(problems) == 3
    assert all(grade(problem, problem.response) for problem in problems)
    originals = {template.question for template in package.load_data("eng")}
    assert not any(
        problem.prompt.removesuffix(" End with #### and the number alone.") in originals for problem in problems
    )
    with pytest.raises(UsageError, match="no language"):
        fresh_problems("gsm-symbolic:xyz", 1)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("<answer>7</answer>", True),
        ("first <answer>6</answer>, no: <answer> 7\n</answer> it is", True),
        ("<answer>7</answer> or <answer>8</answer>", False),
        ("<answer>17</answer>", False),
        ("<answer>7 8</answer>", False),
        ("7", False),
        ("<answer>7", False),
        ("<answer>6 <answer>7</answer>", True),
        ("", False),
    ],
)
def test_tagged_answers(response, right):
    """Without it a guess beside the answer, or several answers, would count."""
    assert grade(Problem("tagged", "?", "", "7"), response) is right
