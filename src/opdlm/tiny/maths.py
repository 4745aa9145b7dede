"""Maths word problems with worked steps that end in `#### N`, in the manner of GSM8K."""

import random
from collections.abc import Iterator

from opdlm.evals.problem import Problem
from opdlm.tiny.problems import Split, draw_until

NAMES = (
    "Ana Ben Cleo Dan Eva Finn Gus Hana Ivan Jo Kim Leo Mia Ned Ola Pia Quin Rosa Sam Tia Uma Vic Will Xena Yan Zoe"
).split()
ITEMS = (
    "apples books cards coins cups eggs fish hats keys lamps maps nuts pens plums rings shells stamps stones toys"
).split()


def _gain(rng: random.Random) -> tuple[str, list[str], int]:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    a, b = rng.randint(2, 60), rng.randint(2, 39)
    text = f"{name} has {a} {item}. {name} finds {b} more. How many {item} does {name} have now?"
    return text, [f"{a}+{b}={a + b}"], a + b


def _gain_then_lose(rng: random.Random) -> tuple[str, list[str], int]:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    a, b = rng.randint(2, 50), rng.randint(2, 30)
    c = rng.randint(1, a + b - 1)
    text = f"{name} had {a} {item}, bought {b} more and gave away {c}. How many {item} are left?"
    return text, [f"{a}+{b}={a + b}", f"{a + b}-{c}={a + b - c}"], a + b - c


def _share(rng: random.Random) -> tuple[str, list[str], int]:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    friends, each = rng.randint(2, 9), rng.randint(2, 9)
    eaten = rng.randint(1, each - 1)
    total = friends * each
    text = (
        f"{name} shares {total} {item} equally among {friends} friends. "
        f"One friend loses {eaten}. How many {item} does that friend keep?"
    )
    return text, [f"{total}/{friends}={each}", f"{each}-{eaten}={each - eaten}"], each - eaten


def _boxes(rng: random.Random) -> tuple[str, list[str], int]:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    boxes, each, loose = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 20)
    total = boxes * each
    text = f"{name} fills {boxes} boxes with {each} {item} each and has {loose} loose ones. How many {item} in all?"
    return text, [f"{boxes}*{each}={total}", f"{total}+{loose}={total + loose}"], total + loose


def _two_people(rng: random.Random) -> tuple[str, list[str], int]:
    first, second = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    a, more = rng.randint(2, 30), rng.randint(1, 19)
    text = (
        f"{first} has {a} {item}. {second} has {more} more than {first}. "
        f"How many {item} do {first} and {second} have together?"
    )
    return text, [f"{a}+{more}={a + more}", f"{a}+{a + more}={2 * a + more}"], 2 * a + more


def _spend(rng: random.Random) -> tuple[str, list[str], int]:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = count * price
    money = cost + rng.randint(1, 30)
    text = f"{name} has {money} dollars and buys {count} {item} for {price} dollars each. How many dollars are left?"
    return text, [f"{count}*{price}={cost}", f"{money}-{cost}={money - cost}"], money - cost


_KINDS = (_gain, _gain_then_lose, _share, _boxes, _two_people, _spend)


def _draw(rng: random.Random) -> Problem:
    kind = rng.choice(_KINDS)
    prompt, steps, answer = kind(rng)
    worked = "".join(f"{step}. " for step in steps)
    return Problem("maths", prompt, f"{worked}#### {answer}", str(answer), tag=kind.__name__.strip("_"))


def problems(seed: int, split: Split) -> Iterator[Problem]:
    """Endless maths problems of one split, the same for the same seed."""
    return draw_until(random.Random(f"maths-{split}-{seed}"), split, _draw)
