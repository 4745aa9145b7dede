"""Generated code runs apart from us: right values come back, and each kind of accident is stopped and named."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opdlm.errors import UsageError
from opdlm.evals import sandbox_child
from opdlm.evals.sandbox import run_python

# Generous, so that a busy machine does not turn a right answer into a timeout.
PATIENT_S = 20.0


def run(source, calls=(), **limits):
    return run_python(source, calls, **{"timeout_s": PATIENT_S, **limits})


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
    """Without it the list of safe names could refuse the code that models commonly write."""
    source = """
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


@pytest.mark.parametrize(
    "source",
    [
        "open('x', 'w').write('x')",
        "import os",
        "import os\nos.fork()",
        "from math import sqrt",
        "__import__('os').system('true')",
        "eval('1')",
        "exec('1')",
        "getattr(1, 'real')",
        "().__class__.__base__.__subclasses__()",
        "def f():\n    return (lambda: 1).__globals__",
        "g = (i for i in [1])\ng.gi_frame.f_back",
        "match 1:\n    case object(__class__=c):\n        pass",
    ],
)
def test_what_is_not_among_the_builtins(source, tmp_path, monkeypatch):
    """Without it generated code would read files, start programs, or reach the interpreter's insides."""
    monkeypatch.chdir(tmp_path)
    assert run(source).kind == "exception"
    assert not list(tmp_path.iterdir())


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
        run_python("", [], timeout_s=0)


ESCAPED = """
import os, runpy, sys
limit_resources = runpy.run_path(sys.argv[1])["limit_resources"]
limit_resources(2, 256)
try:
    {attempt}
except OSError:
    print("stopped")
else:
    print("not stopped")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")
@pytest.mark.parametrize(
    "attempt",
    [
        "f = open('x', 'w'); f.write('x'); f.flush()",
        pytest.param(
            "os.fork() or os._exit(0)",
            marks=pytest.mark.skipif(os.name == "posix" and os.getuid() == 0, reason="the limit does not bind root"),
        ),
        "[os.dup(0) for _ in range(100)]",
    ],
)
def test_second_fence_holds_code_that_left_the_first(attempt, tmp_path):
    """Without it the resource limits could be off, and only the builtins would stand between the code and the disk."""
    command = [
        sys.executable,
        "-I",
        "-S",
        "-B",
        "-c",
        ESCAPED.format(attempt=attempt),
        str(Path(sandbox_child.__file__)),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "stopped", done.stderr


def test_environment_is_empty(monkeypatch):
    """Without it a token in the environment would be within reach of generated code."""
    monkeypatch.setenv("OPDLM_TEST_SECRET", "x")
    seen = {}
    original = subprocess.Popen

    def spy(*args, **kwargs):
        seen.update(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", spy)
    assert run("x = 1").all_passed
    assert seen["env"] == {}
    assert seen["start_new_session"]
