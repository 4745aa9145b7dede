"""Drafts accepted, by their place in the window."""

from lossless import ENDLESS, drafting
from opdlm.config import GenerationSettings, settings_from
from opdlm.evals.acceptance import Acceptance, acceptance_of
from opdlm.sampling.api import DiffusionLM
from rollouts import scripted


def test_a_forward_of_n_tokens_held_n_minus_1_drafts() -> None:
    """Else `eval` would say that drafts hold which were refused, or count forwards that had none."""
    counted = Acceptance(3)
    # The first forward has no drafts, the last may be cut: 4 tokens (all 3 held), then 1 (none), then 2 (one held).
    ((index, _),) = counted.watching([(7, scripted([("pp0111123344", 12)]))])
    assert index == 7
    assert (counted.offered, counted.held) == ([3, 2, 1], [2, 1, 1])
    assert counted.shares == (2 / 3, 0.5, 1.0)


def test_only_where_commit_steps_tell_it() -> None:
    """With `auto` windows differ from forward to forward, and a place was not always offered."""
    lm = DiffusionLM(drafting(window=3), None, GenerationSettings(), ENDLESS)  # type: ignore[arg-type]

    def places(decoding: str) -> int:
        return len(acceptance_of(lm, settings_from(GenerationSettings, {"decoding": decoding})).shares)

    assert [places(kind) for kind in ("verified", "verified:2", "verified:auto", "sequential")] == [3, 2, 0, 0]
