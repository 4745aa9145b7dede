"""What is asked about lossless conversion, as data: each arm changes one thing of a base.

The base is the recipe `lossless` as it was when the study began, with 32 rows an update; the recipe has 8 since.
"""

from dataclasses import dataclass, field
from typing import Any

from opdlm.recipes import load_recipe

Values = dict[str, Any]

ROLLOUTS = 24
"""Of 128 texts each."""
BASE: Values = {**load_recipe("lossless"), "rollouts": ROLLOUTS, "rows_per_update": 32}


@dataclass(frozen=True)
class Arm:
    """One way to train a gate.

    Attributes:
        reason: why it is run, in one line.
        change: settings that differ from `BASE`.
        divergences: losses one after the other, each for an equal share of the rollouts; none: the settings' own.
        one_embedding: all places of a window share one mask embedding.
    """

    reason: str
    change: Values = field(default_factory=dict)
    divergences: tuple[str, ...] = ()
    one_embedding: bool = False


_NOISE: Values = {"window_form": "noise"}
_DRAFTS: Values = {"rollout_decoding": {"kind": "verified", "every": False}}
_THREE: Values = {"window": 3}

ARMS: dict[str, Arm] = {
    "base": Arm("windows of 7 masks behind every token, rank 32, forward KL"),
    "noise": Arm("random ids, causal inside the window: what stock engines serve", _NOISE),
    "visited": Arm("windows only where decoding began a forward", {**_DRAFTS, "anchors": "visited"}),
    "random": Arm("as many windows, anywhere in the text", {**_DRAFTS, "anchors": "random"}),
    "window-3": Arm("three drafts", _THREE),
    "noise-window-3": Arm("three drafts of the noise form", {**_NOISE, **_THREE}),
    "window-15": Arm("fifteen drafts", {"window": 15}),
    "rank-8": Arm("a smaller adapter", {"lora_rank": 8}),
    "rank-64": Arm("a larger adapter, the largest that the narrowest layer takes", {"lora_rank": 64}),
    "noise-rank-64": Arm("a larger adapter of the noise form", {**_NOISE, "lora_rank": 64}),
    "one-embedding": Arm("one mask embedding for all places", one_embedding=True),
    "rows-8": Arm("four times as many updates, of 8 rows", {"rows_per_update": 8}),
    "rows-4": Arm("eight times as many updates, of 4 rows", {"rows_per_update": 4, "rows_per_micro_batch": 4}),
    "tv": Arm("total variation alone", {"divergence": {"kind": "tv"}}),
    "kl-then-tv": Arm("KL for half of the rollouts, then total variation", divergences=("forward_kl", "tv")),
    "shorter": Arm("half the budget", {"rollouts": ROLLOUTS // 2}),
    "longer": Arm("more than twice the budget, that of the gate that ships", {"rollouts": 63}),
    "temperature-1": Arm("texts sampled at temperature 1, not greedy", {"rollout_temperature": 1.0}),
}
"""The most telling first."""
