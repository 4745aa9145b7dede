"""The commit rules by name, and their decision over rows that may have different ones."""

from collections.abc import Collection, Mapping

import torch

from opdlm.core.commit import CommitRule, dynamic, entropy_bound, factor, klass, prefix, sequential, static
from opdlm.core.propose import Proposals

RULES: dict[str, tuple[CommitRule, tuple[str, ...]]] = {
    "static": (static, ("tokens_per_step",)),
    "sequential": (sequential, ("tokens_per_step",)),
    "dynamic": (dynamic, ("threshold",)),
    "prefix": (prefix, ("threshold",)),
    "factor": (factor, ("factor",)),
    "entropy": (entropy_bound, ("bound", "by_confidence")),
    "klass": (klass, ("threshold", "drift", "history")),
}
"""Each with the names of its numbers, as the settings call them."""
VERIFIED: dict[str, tuple[str, ...]] = {"verified": (), "typical": ("least",)}
"""Ways of a drafting model, which commits what its own check accepts; likewise."""
CHECKED: dict[str, tuple[str, ...]] = {"checked": ()}
"""Of a student with masks that checks its own drafts; likewise."""
_NUMBERS = {**{kind: names for kind, (_, names) in RULES.items()}, **VERIFIED, **CHECKED}
MOST_NUMBERS = max(map(len, _NUMBERS.values()))
_INDEX = {kind: index for index, kind in enumerate(_NUMBERS)}
TYPICAL = _INDEX["typical"]


def as_numbers(decoding: Mapping[str, float]) -> tuple[int, list[float]]:
    """The rule's index, and its numbers filled up to MOST_NUMBERS: what stands in tensors for `decide`."""
    kind = str(decoding["kind"])
    numbers = [float(decoding[name]) for name in _NUMBERS[kind]]
    return _INDEX[kind], numbers + [0.0] * (MOST_NUMBERS - len(numbers))


def history(decoding: Mapping[str, float]) -> int:
    """H, the steps of drift that the rule looks at."""
    return int(decoding["history"]) if decoding["kind"] == "klass" else 0


def drafts(decoding: Mapping[str, float]) -> int:
    """Most drafts of a forward that a request asks for; the model may make fewer."""
    return int(decoding.get("drafts", 0))


def decide(
    kinds: Collection[str], rule: torch.Tensor, numbers: torch.Tensor, seen: Proposals, masked: torch.Tensor
) -> torch.Tensor:
    """[B, S] bool: what each row commits by its own rule.

    Args:
        kinds: the rules of the rows; known to the host, so that no other is computed.
        rule: [B] int64 and numbers: [B, MOST_NUMBERS] float32, as `as_numbers` gives them.
        seen, masked: as in `core.commit`.
    """
    committed = torch.zeros_like(masked)
    for kind in kinds:
        choose, names = RULES[kind]
        chosen = choose(seen, masked, **{name: numbers[:, i, None] for i, name in enumerate(names)})
        committed |= chosen & (rule == _INDEX[kind])[:, None]
    return committed
