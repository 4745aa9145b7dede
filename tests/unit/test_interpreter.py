"""The small interpreter means what Python means, and takes neither time nor memory from whoever runs it."""

import itertools

import pytest

from opdlm.evals.interpreter import NotInterpretedError, call_function
from opdlm.tiny import code

PROGRAMS = {
    "def f(x):\n    return x * 3 - -4 if x > 2 and not x == 5 or x < -7 else x // 3 % 5": ["0", "3", "5", "-8", "True"],
    "def f(xs):\n    n = 0\n    for x in xs:\n        if x in [1, 2]:\n            n += x\n    return n": [
        "[1, 2, 3, 1]"
    ],
    "def f(xs):\n    return sum(x * 2 for x in xs if x > 1) + len([abs(x) for x in xs])": ["[1, 2, -3]", "[]"],
    "def f(xs):\n    return sorted(xs)[-1] + max(xs) * min(xs[1:])": ["[3, 1, 2]"],
    "def f(s):\n    return s.upper()[::-1] + s.strip().lower() * 2 + s[0:2]": ["' aB '"],
    "def f(n):\n    return list(range(n)) + list(range(1, n, 2))": ["5", "0"],
    "def f(x):\n    'Says what.'\n    if x:\n        return 1 < x <= 3 != 2\n    pass": ["0", "2", "9"],
    "def g(x):\n    return 1\ndef f(x):\n    x = x + 1\n    return x": ["1"],
}


@pytest.mark.parametrize("source", PROGRAMS)
def test_the_value_is_pythons(source):
    """Without it a right program of the demo could count as wrong, or a wrong one as right."""
    scope = {}
    exec(source, scope)
    for argument in PROGRAMS[source]:
        expected = eval(f"f({argument})", scope)
        made = call_function(source, f"f({argument})")
        assert (made, type(made)) == (expected, type(expected))


def test_the_packages_programs_are_in_the_language():
    """Without it the demo's accuracy would be that of the interpreter, not of the model."""
    for problem in itertools.islice(code.problems(0, "train"), 300):
        for call, expected in problem.calls:
            assert repr(call_function(problem.response, call)) == expected


@pytest.mark.parametrize(
    "source",
    [
        "import os\ndef f(x):\n    return 1",
        "def f(x):\n    import os\n    return 1",
        "def f(x):\n    return x.__class__",
        "def f(x):\n    return x.upper.__self__",
        "def f(x):\n    return open('/etc/passwd')",
        "def f(x):\n    return eval('1')",
        "def f(x):\n    return '%1000000000d' % 1",
        "def f(x):\n    return f'{x:1000000000}'",
        "def f(x):\n    return 'a' * 10**12",
        "def f(x):\n    return ['a'] * 100000000000",
        "def f(x):\n    y = 'a' * 900\n    for _ in range(900):\n        y = y + y\n    return y",
        "def f(x):\n    y = 3\n    for _ in range(900):\n        y = y * y\n    return y",
        "def f(x):\n    a = [1]\n    for _ in range(60):\n        a = [a, a]\n    return a == a",
        "def f(x):\n    return range(10**10)",
        "def f(x):\n    for a in range(1000):\n        for b in range(1000):\n            pass",
        "def f(x):\n    while True:\n        pass",
        "def f(x):\n    return f(x)",
        "def f(x):\n    return (lambda: 1)()",
        "def f(x, y=open):\n    return 1",
        "def f(*x):\n    return 1",
        "@print\ndef f(x):\n    return 1",
        "class f:\n    pass",
        "f = 1",
        "def f(x):\n    return x + 'a'",
        "def f(x):\n    return x // 0",
        "def f(x):\n    return [1][5]",
        "def f(x):\n    return y",
        "def f(x):\n    len = 1\n    return len([])",
        "def f(x) return",
        "def f(x):\n    return " + "-" * 5000 + "1",
        "def f(x):\n    return " + "(" * 500 + "1" + ")" * 500,
        "def f(x):\n    return 1\0",
        "def f(x):\n    return '\ud800'",
        "def f(x):\n    return " + "9" * 5000,
        "def f(x, y):\n    return 1",
        "",
    ],
)
def test_all_else_raises(source):
    """Without it a program could reach the system, or take the evaluation's time and memory."""
    with pytest.raises(NotInterpretedError):
        call_function(source, "f(1)")


def test_odd_escapes_do_not_warn():
    """Without it a model's program would write warnings into the user's terminal."""
    assert call_function("def f(x):\n    return '\\d'", "f(1)") == "\\d"
