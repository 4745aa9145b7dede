"""Candidates and commit rules. V = 8 tokens, the last stands for the mask token."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opdlm.core import commit
from opdlm.core.noise import uniform

LOGITS = torch.tensor([1.2, -0.3, 0.4, 2.0, -1.0, 0.0, 0.9, -1e30])
ZERO = torch.tensor(0)


def draws(count: int = 20000, **filters: float) -> torch.Tensor:
    """Tokens of `count` seeds from LOGITS."""
    token, _ = commit.candidates(LOGITS.expand(count, -1), torch.arange(count), ZERO, ZERO, **filters)  # type: ignore[arg-type]
    return token


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.6)]
)
def test_samples_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    """Else rollouts would not be the student's own distribution, and the method would not be on-policy.

    Pearson's chi-square against the softmax, the filter written out by hand.
    """
    expected = (LOGITS / temperature).softmax(-1)
    descending = expected.argsort(descending=True)
    kept = descending[: top_k or None]
    if top_p < 1:
        kept = descending[: 1 + int((expected[descending].cumsum(0) < top_p).sum())]
    expected = torch.zeros(8).index_copy(0, kept, expected[kept])
    expected = expected / expected.sum()
    found = draws(temperature=temperature, top_k=top_k, top_p=top_p).bincount(minlength=8)
    possible = expected > 0
    assert not found[~possible].any(), "it drew a token that the filter takes out"
    chi_square = ((found - 20000 * expected)[possible] ** 2 / (20000 * expected[possible])).sum()
    degrees = int(possible.sum()) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_confidence_is_the_models_own_probability() -> None:
    """Else the threshold would mean something else at another temperature, or under a filter."""
    for filters in ({"temperature": 0.0}, {"temperature": 0.3}, {"temperature": 2.0, "top_k": 2}, {"top_p": 0.5}):
        settings_ = {"temperature": 1.0} | filters
        token, confidence = commit.candidates(LOGITS.expand(50, -1), torch.arange(50), ZERO, ZERO, **settings_)  # type: ignore[arg-type]
        torch.testing.assert_close(confidence, LOGITS.softmax(-1)[token])


def test_temperature_zero_is_the_argmax_and_needs_no_seed() -> None:
    """Else greedy decoding would not be reproducible."""
    token, _ = commit.candidates(LOGITS.expand(50, -1), torch.arange(50), ZERO, ZERO, temperature=0.0)
    assert (token == 3).all()


def test_the_mask_token_is_never_drawn() -> None:
    """Else a text could hold a mask that nobody fills."""
    assert (draws(temperature=50.0) != 7).all()
    flat = torch.full((2000, 8), -1e30)
    flat[:, 2] = -500.0  # all but one without any mass
    token, _ = commit.candidates(flat, torch.arange(2000), ZERO, ZERO, temperature=1.0)
    assert (token == 2).all()


def test_draws_depend_on_seed_position_and_round_alone() -> None:
    """Else a response would change with the batch or with the block that is computed beside it."""
    logits = LOGITS.expand(6, 4, -1)
    seed, position, round_ = torch.arange(6)[:, None], torch.arange(4)[None], torch.full((6, 1), 2)
    token, _ = commit.candidates(logits, seed, position, round_, temperature=1.0)
    alone, _ = commit.candidates(LOGITS[None], seed[4], position[0, 3:], round_[0], temperature=1.0)
    assert token[4, 3] == alone[0]
    cumulative = LOGITS.softmax(-1).double().cumsum(-1)
    drawn = uniform(seed, position, round_) * cumulative[-1]
    assert torch.equal(token, (cumulative <= drawn[..., None]).sum(-1))


RULES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "static": commit.static,
    "static:2": lambda c, m: commit.static(c, m, 2),
    "sequential:3": lambda c, m: commit.sequential(c, m, 3),
    "dynamic:0.8": lambda c, m: commit.dynamic(c, m, 0.8),
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("static", "....x."), ("static:2", ".x..x."), ("sequential:3", ".x.xx."), ("dynamic:0.8", ".x..xx")],
)
def test_what_each_rule_fixes(rule: str, expected: str) -> None:
    """Else a threshold or a count would mean something else than the papers say.

    Column 0 and 2 are fixed already, however confident the model is of them.
    """
    confidence = torch.tensor([[0.99, 0.9, 0.999, 0.3, 0.95, 0.81]])
    masked = torch.tensor([[False, True, False, True, True, True]])
    found = RULES[rule](confidence, masked)[0].tolist()
    assert "".join("x" if fixed else "." for fixed in found) == expected


def test_dynamic_fixes_the_best_one_below_the_threshold() -> None:
    """Else decoding would never end where the model is unsure; the comparison is strict, as published."""
    masked = torch.ones(1, 3, dtype=torch.bool)
    assert commit.dynamic(torch.tensor([[0.2, 0.5, 0.4]]), masked, 0.9).tolist() == [[False, True, False]]
    assert commit.dynamic(torch.tensor([[0.5, 0.5, 0.4]]), masked, 0.5).tolist() == [[True, False, False]]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_rule_makes_progress(data: st.DataObject) -> None:
    """Else a row could loop forever, or a rule could overwrite a fixed token."""
    size = data.draw(st.integers(1, 6))
    confidence = torch.tensor([data.draw(st.lists(st.floats(0, 1, width=32), min_size=size, max_size=size))])
    masked = torch.tensor([data.draw(st.lists(st.booleans(), min_size=size, max_size=size))])
    for rule in RULES.values():
        before = confidence.clone(), masked.clone()
        committed = rule(confidence, masked)
        assert not (committed & ~masked).any()
        assert committed.any() == masked.any()
        assert torch.equal(confidence, before[0])
        assert torch.equal(masked, before[1])
