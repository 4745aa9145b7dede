"""The four task families together: mixed streams for training, fixed sets for evaluation."""

import itertools
import random
from collections.abc import Iterator

from opdlm.evals.problem import Problem
from opdlm.tiny import code, edit, maths, recall
from opdlm.tiny.problems import Family, Split

GENERATORS = {"maths": maths.problems, "recall": recall.problems, "edit": edit.problems, "code": code.problems}
FAMILIES: tuple[Family, ...] = ("maths", "recall", "edit", "code")


def mixed(seed: int, split: Split, weights: dict[Family, float] | None = None) -> Iterator[Problem]:
    """An endless stream over all families, drawn with `weights` (equal if not given)."""
    rng = random.Random(f"mix-{split}-{seed}")
    streams = {family: GENERATORS[family](seed, split) for family in FAMILIES}
    shares = [1.0 if weights is None else weights[family] for family in FAMILIES]
    while True:
        yield next(streams[rng.choices(FAMILIES, shares)[0]])


def evaluation_set(per_family: int, seed: int = 0) -> list[Problem]:
    """`per_family` problems of each family from the eval split; recall holds as many seen as unseen facts."""
    chosen: list[Problem] = []
    for family in FAMILIES:
        stream = GENERATORS[family](seed, "eval")
        if family == "recall":
            first = list(itertools.islice(stream, 4 * per_family))
            half = per_family // 2
            chosen += [p for p in first if p.tag == "seen"][: per_family - half]
            chosen += [p for p in first if p.tag == "unseen"][:half]
        else:
            chosen += itertools.islice(stream, per_family)
    return chosen
