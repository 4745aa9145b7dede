"""Tiny Python functions written from a description, graded by running them."""

import random
from collections.abc import Iterator

from opdlm.evals.problem import Problem
from opdlm.tiny.problems import Split, draw_until

_NAMES = "f g h calc solve work step mix turn find make run".split()
_LISTS = ([3, 1, 2], [5, -4, 10, 7], [2], [8, 8, 1, 0, 6])
_STRINGS = ("cat", "moon", "Ab c", "x")
_NUMBERS = (0, 1, 7, -3, 12)


def _linear(rng: random.Random) -> tuple[str, str, list[str]]:
    a, b = rng.randint(2, 99), rng.randint(1, 99)
    word, op = rng.choice((("plus", "+"), ("minus", "-")))
    return (
        f"takes x and returns x times {a} {word} {b}",
        f"(x):\n    return x * {a} {op} {b}",
        [str(n) for n in _NUMBERS],
    )


def _compare(rng: random.Random) -> tuple[str, str, list[str]]:
    limit, high, low = rng.randint(0, 50), rng.randint(1, 99), rng.randint(1, 99)
    body = f"(x):\n    if x > {limit}:\n        return {high}\n    return {low}"
    calls = [str(n) for n in (limit - 1, limit, limit + 1, limit + 30)]
    return f"takes x and returns {high} if x is more than {limit} and {low} if not", body, calls


def _loop_sum(rng: random.Random) -> tuple[str, str, list[str]]:
    word, op = rng.choice((("times", "*"), ("plus", "+"), ("minus", "-")))
    a = rng.randint(2, 99)
    body = f"(xs):\n    total = 0\n    for x in xs:\n        total += x {op} {a}\n    return total"
    return f"takes a list xs and returns the sum of x {word} {a} for each x", body, [repr(xs) for xs in _LISTS]


def _count_if(rng: random.Random) -> tuple[str, str, list[str]]:
    word, op = rng.choice((("more", ">"), ("less", "<")))
    a = rng.randint(0, 99)
    body = f"(xs):\n    count = 0\n    for x in xs:\n        if x {op} {a}:\n            count += 1\n    return count"
    calls = [repr([a, a + 1, a - 1, a + 1]), *(repr(xs) for xs in _LISTS)]
    return f"takes a list xs and counts the items that are {word} than {a}", body, calls


def _aggregate(rng: random.Random) -> tuple[str, str, list[str]]:
    word, call = rng.choice((("largest", "max"), ("smallest", "min")))
    a = rng.randint(2, 99)
    body = f"(xs):\n    return {call}(xs) * {a}"
    return f"takes a list xs and returns its {word} item times {a}", body, [repr(xs) for xs in _LISTS]


def _text(rng: random.Random) -> tuple[str, str, list[str]]:
    times = rng.randint(2, 30)
    words, expression = rng.choice(
        (("in upper case", "s.upper()"), ("in lower case", "s.lower()"), ("reversed", "s[::-1]"))
    )
    body = f"(s):\n    return {expression} * {times}"
    return f"takes a text s and returns it {words}, {times} times", body, [repr(s) for s in _STRINGS]


_KINDS = (_linear, _compare, _loop_sum, _count_if, _aggregate, _text)


def _draw(rng: random.Random) -> Problem:
    kind = rng.choice(_KINDS)
    description, body, arguments = kind(rng)
    name = rng.choice(_NAMES)
    source = f"def {name}{body}"
    scope: dict = {}
    exec(source, scope)  # our own text, built above from fixed parts
    calls = tuple((f"{name}({argument})", repr(eval(f"{name}({argument})", scope))) for argument in arguments)
    prompt = f"Write a Python function {name} that {description}."
    return Problem("code", prompt, source, name, calls, kind.__name__.strip("_"), interpreted=True)


def problems(seed: int, split: Split) -> Iterator[Problem]:
    """Endless code problems of one split, the same for the same seed."""
    return draw_until(random.Random(f"code-{split}-{seed}"), split, _draw)
