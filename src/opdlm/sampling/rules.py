"""From settings to the pure commit rule."""

from functools import partial

from opdlm.config import Decoding, DynamicDecoding, StaticDecoding
from opdlm.core import commit


def commit_rule(decoding: Decoding) -> commit.CommitRule:
    """The commit rule that `decoding` names."""
    if isinstance(decoding, DynamicDecoding):
        return partial(commit.dynamic, threshold=decoding.threshold)
    rule = commit.static if isinstance(decoding, StaticDecoding) else commit.sequential
    return partial(rule, tokens_per_round=decoding.tokens_per_round)
