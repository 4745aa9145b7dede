"""How prompts are divided into splits that cannot overlap.

A prompt belongs to exactly one split, decided by a hash of its own text. Generators draw problems until one falls into
the split that was asked for, so no list of "used" prompts is kept and the streams never run out.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Literal

from opdlm.evals.problem import Problem

Split = Literal["train", "conversion", "eval"]
Family = Literal["maths", "recall", "edit", "code"]

# Shares of the hash space, in percent: the pretraining split is the largest, for the AR model learns the task from it.
_EVAL_BELOW, _CONVERSION_BELOW = 10, 40


def split_of(prompt: str) -> Split:
    """The one split that `prompt` belongs to, by a hash of its text (the same on every machine)."""
    share = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 100
    if share < _EVAL_BELOW:
        return "eval"
    return "conversion" if share < _CONVERSION_BELOW else "train"


def draw_until(rng: random.Random, split: Split, draw: Callable[[random.Random], Problem]) -> Iterator[Problem]:
    """Endless problems from `draw` whose prompts belong to `split`."""
    while True:
        problem = draw(rng)
        assert isinstance(problem.prompt, str), "generated problems are plain text"
        if split_of(problem.prompt) == split:
            yield problem
