"""From settings to the pure commit rule."""

from functools import partial

from opdlm.config import (
    Decoding,
    DynamicDecoding,
    EntropyDecoding,
    FactorDecoding,
    KlassDecoding,
    PrefixDecoding,
    SequentialDecoding,
    StaticDecoding,
)
from opdlm.core import commit

_RULES = {
    StaticDecoding: commit.static,
    SequentialDecoding: commit.sequential,
    DynamicDecoding: commit.dynamic,
    PrefixDecoding: commit.prefix,
    FactorDecoding: commit.factor,
    EntropyDecoding: commit.entropy_bound,
    KlassDecoding: commit.klass,
}


def commit_rule(decoding: Decoding) -> commit.CommitRule:
    """The commit rule that `decoding` names; its settings are the rule's arguments, by name."""
    return partial(_RULES[type(decoding)], **decoding.model_dump(exclude={"kind"}))


def history(decoding: Decoding) -> int:
    """H, the rounds of drift that the rule looks at."""
    return decoding.history if isinstance(decoding, KlassDecoding) else 0
