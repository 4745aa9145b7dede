"""Generated code runs apart from us: right values come back, and each kind of accident is stopped and named."""

import subprocess
import sys
import time

import pytest

from opdlm.errors import UnconfinedCodeError, UsageError
from opdlm.evals import sandbox_search
from opdlm.evals.sandbox import run_calls, run_tests
from opdlm.evals.sandbox_confinement import Confinement
from opdlm.evals.sandbox_search import confinement

# Generous, so that a busy machine does not turn a right answer into a timeout.
PATIENT_S = 20.0
WITHIN = confinement(allow_unconfined=True)


def run(source, calls=(), **limits):
    return run_calls(source, calls, **{"timeout_s": PATIENT_S, "within": WITHIN, **limits})


def test_correct_and_wrong_values():
    """Without it a grader could credit wrong answers, or miss right ones for their spelling."""
    source = "def f(x):\n    return sorted(x)\n"
    result = run(source, [("f([3, 1])", "[1,3]"), ("f([2])", "[2]"), ("f([1])", "[7]")])
    assert result.kind == "ok"
    assert result.reprs == ("[1, 3]", "[2]", "[1]")
    assert result.passed == (True, True, False)
    assert not result.all_passed
    assert run(source, [("f([3, 1])", "[1, 3]")]).all_passed


def test_ordinary_programs_run():
    """Without it what models commonly write, imports of the standard library too, could fail for its surroundings."""
    source = """
import collections, dataclasses, heapq, math, re
from typing import List

@dataclasses.dataclass
class Point:
    x: int

class Counter:
    def __init__(self, start: int = 0):
        self.n = start

    def __add__(self, other):
        return Counter(self.n + other.n)

class Named(Counter):
    def __init__(self, start):
        super().__init__(start)

def f(k):
    try:
        return [v for v in map(lambda i: i * i, range(k)) if v % 2][k]
    except IndexError as error:
        print("short", error)
        return sum((Named(i) for i in range(k)), Counter()).n

def gen(k):
    yield from ((i, f"{i:02d}") for i in range(k))

assert __name__ != "__main__"
"""
    source = source.replace("sum((Named(i) for i in range(k)), Counter())", "(Named(k) + Counter(1))")
    result = run(source, [("f(4)", "5"), ("dict(gen(2))", "{1: '01', 0: '00'}"), ("type({1}) is set", "True")])
    assert (result.kind, result.detail) == ("ok", "")
    assert result.all_passed


def test_no_calls_is_ok():
    """Without it code that only needs to run would need a made-up call."""
    assert run("x = 1").all_passed


def test_syntax_error():
    """Without it text that is no program would look like a program that failed."""
    result = run("def f(:\n", [("f(1)", "1")])
    assert result.kind == "syntax"
    assert "SyntaxError" in result.detail
    assert result.passed == (False,)


@pytest.mark.parametrize("source", ["x = 1\0", "x = '\ud800'"])
def test_text_that_cannot_be_source(source):
    """Without it a stray byte in a sample would end the whole evaluation."""
    assert run(source).kind == "syntax"


def test_exception_keeps_the_results_before_it():
    """Without it one failing call would hide what the others returned."""
    result = run("def f(x):\n    return 6 // x\n", [("f(2)", "3"), ("f(0)", "0"), ("f(1)", "6")])
    assert result.kind == "exception"
    assert result.detail.startswith("ZeroDivisionError")
    assert result.reprs == ("3",)
    assert result.passed == (True, False, False)


def test_infinite_loop_times_out_with_the_results_before_it():
    """Without it one endless program would hold up every evaluation."""
    start = time.monotonic()
    result = run("def f(x):\n    while x:\n        pass\n    return x\n", [("f(0)", "0"), ("f(1)", "1")], timeout_s=2.0)
    assert result.kind == "timeout"
    assert result.passed == (True, False)
    assert time.monotonic() - start < PATIENT_S


def test_swallowed_exceptions_do_not_escape_the_clock():
    """Without it `except BaseException` would outlive a limit that is only an exception."""
    source = "while True:\n    try:\n        raise ValueError\n    except BaseException:\n        pass\n"
    assert run(source, timeout_s=1.0).kind == "timeout"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the address space")
@pytest.mark.parametrize("source", ["x = 'a' * 10**12", "x = []\nwhile True:\n    x.append('a' * 10**6 + str(len(x)))"])
def test_memory_bomb(source):
    """Without it one program could take the memory of the training beside it."""
    assert run(source, [("1", "1")]).kind == "memory"


def test_leaving_is_an_exception():
    """Without it a program could end the child early and be taken for one that ran to its end."""
    result = run("class Stop(BaseException):\n    pass\nraise Stop('out')", [("1", "1")])
    assert (result.kind, result.detail) == ("exception", "Stop: out")


def test_output_flood_is_dropped():
    """Without it prints could fill a pipe and block, or be read as results."""
    result = run("for _ in range(2000):\n    print('\"1\"' * 1000)\n", [("2", "1")])
    assert result.kind == "ok"
    assert result.reprs == ("2",)
    assert result.passed == (False,)


def test_result_flood_is_an_exception():
    """Without it one enormous result would fill the grader's memory."""
    result = run("", [("'a' * 10**6", "'a'")])
    assert result.kind == "exception"
    assert "longer than" in result.detail


def test_deep_recursion_is_an_exception():
    """Without it a missing base case would look like a crash."""
    result = run("def f(x):\n    return f(x)\n", [("f(1)", "1")])
    assert result.kind == "exception"
    assert result.detail.startswith("RecursionError")


def test_a_class_that_equals_everything_fails():
    """Without it an object could pass each comparison by saying so."""
    assert run("class Any:\n    def __eq__(self, other):\n        return True\n", [("Any()", "3")]).passed == (False,)


def test_expected_values_that_are_no_literals_compare_by_repr():
    """Without it a result such as a range could never pass."""
    assert run("", [("range(3)", "range(0, 3)")]).all_passed


def test_limits_must_be_positive():
    """Without it a wrong setting would read as a timeout of every program."""
    with pytest.raises(UsageError, match="must be positive"):
        run_calls("", [], timeout_s=0)


def test_a_child_starts_with_nothing_of_the_parents(monkeypatch):
    """Without it a token in the environment, or a problem on the command line, would be within reach of the code."""
    seen = {}
    original = subprocess.Popen

    def spy(*args, **kwargs):
        seen.update(kwargs, command=args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", spy)
    assert run("x = 1", [("x", "1")]).all_passed
    assert seen["env"] == {}
    assert seen["start_new_session"]
    assert seen["command"] == WITHIN.command()


CHECK = """
def check(candidate):
    assert candidate([3, 1]) == (1, 3), "sorted"
    assert candidate(xs=[]) == ()
"""


def by_tests(source, tests, **more):
    return run_tests(source, tests, "f", timeout_s=PATIENT_S, within=WITHIN, **more)


def test_tests_with_a_check_function():
    """Without it the form of HumanEval could not be graded, or a wrong program would pass it."""
    assert by_tests("def f(xs):\n    return tuple(sorted(xs))", CHECK).all_passed
    wrong = by_tests("def f(xs):\n    return tuple(xs)", CHECK)
    assert (wrong.kind, wrong.passed, wrong.detail) == ("exception", (False,), "AssertionError: sorted")


def test_tests_with_asserts_on_objects_of_the_program():
    """Without it the form of MBPP could not be graded where a test makes what the program defines."""
    source = (
        "class Pair:\n    def __init__(self, a):\n        self.a = a\ndef f(pairs):\n    return {p.a for p in pairs}"
    )
    assert by_tests(source, "assert f([Pair(1), Pair(a=2)]) == {2, 1}").all_passed
    assert not by_tests(source, "assert f([Pair(1), Pair(a=2)]) == {3}").all_passed


def test_the_prelude_runs_before_program_and_tests():
    """Without it the imports and functions that a prompt gives would be missing in either."""
    prelude = "import math\ndef near(a, b):\n    return math.isclose(a, b)\ndef f(x):\n    return 0\n"
    tests = "for n in range(1, 9):\n    assert near(f(n), n ** 0.5)"
    assert by_tests("def f(x):\n    return math.sqrt(x)", tests, prelude=prelude).all_passed
    assert not by_tests("", tests, prelude=prelude).all_passed


def test_errors_of_the_program_reach_its_tests():
    """Without it a test that wants an error could not tell it from another."""
    tests = "try:\n    f(0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    raise AssertionError"
    assert by_tests("def f(x):\n    return 1 // x", tests).all_passed
    assert not by_tests("def f(x):\n    return int('x')", tests).all_passed


@pytest.mark.parametrize(
    "value", ["None", "1.5", "float('inf')", "1j", "b'a\\xff'", "{1: (2, {3})}", "range(3)", "10**40"]
)
def test_values_cross_as_they_are(value):
    """Without it a right result would be wrong for its type, on its way to the tests or as an argument."""
    assert by_tests(
        "def f(x):\n    return x", f"assert f({value}) == {value} and type(f({value})) is type({value})"
    ).all_passed


def test_results_that_are_made_as_they_are_read():
    """Without it a program that returns a generator could never pass."""
    assert by_tests("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]").all_passed


def test_code_is_not_run_unconfined_unless_allowed(monkeypatch):
    """Without it a model's code would have the user's rights on a system that confines nothing, unasked."""
    monkeypatch.setattr(sandbox_search, "_strongest", lambda: None)
    with pytest.raises(UnconfinedCodeError, match=r"install bubblewrap.*--allow-unconfined-code"):
        run_calls("", [])
    assert confinement(allow_unconfined=True) == Confinement("limits")
    assert "UNCONFINED" in str(Confinement("limits"))


def test_a_tool_that_may_not_work_here_is_passed_over(monkeypatch):
    """Without it bubblewrap that is installed, and not allowed to work, would fail every program."""
    monkeypatch.setattr(sandbox_search.shutil, "which", lambda name: "/bin/false")
    found = sandbox_search._strongest.__wrapped__()
    assert found is None or found.kind == "namespaces"
