"""Instructions on words and lists: sort, reverse, count, pick, repeat."""

import random
from collections.abc import Iterator

from opdlm.evals.problem import Problem
from opdlm.tiny.problems import Split, draw_until

WORDS = (
    "ant bag bed bell bird boat bone book bread bus cake car cat cave clock cloud coat corn cow crab cup deer desk dog "
    "door drum duck ear egg elk farm fern fish flag fox frog fruit gate glass goat gold grass hand hat hen hill home "
    "horse ice ink jam jar key king kite lake lamp leaf lion log map milk moon moss mouse nail nest night oak owl pan "
    "pear pen pig pine pond queen rain ring road rock rope rose salt sand ship shoe silk snow sock song star stone "
    "storm sun tea tent tree vase wall wave well wind wing wolf wood wool yard zebra"
).split()
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "last")


def _sort_words(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(WORDS, rng.randint(3, 5))
    lead = rng.choice(("Sort these words from a to z", "Put these words in alphabetical order"))
    return f"{lead}: {' '.join(words)}", " ".join(sorted(words))


def _sort_numbers(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(1, 100), rng.randint(3, 4))
    down = rng.random() < 0.5
    lead = "from largest to smallest" if down else "from smallest to largest"
    return f"Sort these numbers {lead}: {','.join(map(str, numbers))}", ",".join(
        map(str, sorted(numbers, reverse=down))
    )


def _reverse(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(WORDS, rng.randint(3, 6))
    lead = rng.choice(("Reverse this list", "Write these words in reverse order"))
    return f"{lead}: {' '.join(words)}", " ".join(reversed(words))


def _count(rng: random.Random) -> tuple[str, str]:
    target, *others = rng.sample(WORDS, 4)
    words = [rng.choice((target, *others)) for _ in range(rng.randint(4, 8))]
    return f"How many times does {target} occur here: {' '.join(words)}", str(words.count(target))


def _pick(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(WORDS, rng.randint(5, 7))
    ordinal = rng.choice(_ORDINALS)
    index = -1 if ordinal == "last" else _ORDINALS.index(ordinal)
    return f"Which word is the {ordinal} one here: {' '.join(words)}", words[index]


def _repeat(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(WORDS, rng.randint(1, 2))
    times = rng.randint(2, 5)
    return f"Write this {times} times: {' '.join(words)}", " ".join(words * times)


_KINDS = (_sort_words, _sort_numbers, _reverse, _count, _pick, _repeat)


def _draw(rng: random.Random) -> Problem:
    kind = rng.choice(_KINDS)
    prompt, answer = kind(rng)
    return Problem("edit", prompt, answer, answer, tag=kind.__name__.strip("_"))


def problems(seed: int, split: Split) -> Iterator[Problem]:
    """Endless edit problems of one split, the same for the same seed."""
    return draw_until(random.Random(f"edit-{split}-{seed}"), split, _draw)
