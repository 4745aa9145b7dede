"""What a step proposes: draws, filters, penalties, and the model's own opinion. V = 8, the last is the mask token."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from opdlm.core.noise import uniform
from opdlm.core.propose import Controls, Proposals, draw, filtered, moved, penalised, present, propose, race

LOGITS = torch.tensor([1.2, -0.3, 0.4, 2.0, -1.0, 0.0, 0.9, -1e30])
ZERO = torch.zeros(1, dtype=torch.int64)
FILTERS = [
    {},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"temperature": 2.0, "top_k": 6, "top_p": 0.9, "min_p": 0.3},
]


def proposed(count: int, scores: torch.Tensor = LOGITS, /, **filters: Any) -> Proposals:
    """Proposals [1, count] for as many seeds from LOGITS, tokens chosen by `scores`."""
    controls = controls_of(**({"temperature": 1.0} | filters), bias=(scores - LOGITS)[None])
    seed = torch.arange(count)[None]
    return propose(LOGITS.expand(1, count, -1), controls, by_chance(seed, ZERO, ZERO))


def by_chance(seed: torch.Tensor, position: torch.Tensor, step: torch.Tensor) -> Callable[..., torch.Tensor]:
    return partial(draw, chance=uniform(seed, position, step))


def controls_of(
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    bias: torch.Tensor | None = None,
    rows: int = 1,
) -> Controls:
    """The same for all rows; what is off is left out."""
    return Controls(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k) if top_k else None,
        top_k_limit=top_k,
        top_p=torch.full((rows,), top_p) if top_p < 1 else None,
        min_p=torch.full((rows,), min_p) if min_p else None,
        bias=bias,
    )


def filtered_by_hand(probabilities: list[float], top_k: int, top_p: float, min_p: float) -> list[float]:
    """The distribution that is left, from the definitions of the three filters, one after the other."""
    ranked = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    ranked = ranked[: top_k or None]
    mass = sum(probabilities[token] for token in ranked)
    before = [0.0, *accumulate(probabilities[token] / mass for token in ranked)]
    ranked = [token for token, sum_before in zip(ranked, before, strict=False) if top_p == 1 or sum_before < top_p]
    ranked = [token for token in ranked if probabilities[token] >= min_p * probabilities[ranked[0]]]
    mass = sum(probabilities[token] for token in ranked)
    return [probabilities[token] / mass if token in ranked else 0.0 for token in range(len(probabilities))]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_samples_follow_the_distribution(filters: dict[str, float]) -> None:
    """Else rollouts would not be the student's own distribution, and the method would not be on-policy.

    Pearson's chi-square against the softmax, the filters written out by hand.
    """
    f = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    plain = (LOGITS / f["temperature"]).softmax(-1).tolist()
    expected = torch.tensor(filtered_by_hand(plain, int(f["top_k"]), f["top_p"], f["min_p"]))
    found = proposed(20000, **filters).token[0].bincount(minlength=8)
    possible = expected > 0
    assert not found[~possible].any(), "it drew a token that the filter takes out"
    chi_square = ((found - 20000 * expected)[possible] ** 2 / (20000 * expected[possible])).sum()
    degrees = int(possible.sum()) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 4, 20]),
    st.sampled_from([1.0, 0.9, 0.4, 0.01]),
    st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_filters_are_their_definitions_one_after_the_other(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    """Else `top_p` of what `top_k` left, or `min_p` of what both left, would mean another set of tokens."""
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed)) * 2
    found = filtered(logits[None], controls_of(top_k=top_k, top_p=top_p, min_p=min_p))[0]
    found = found / found.sum(-1, keepdim=True)
    by_hand = [filtered_by_hand(row, top_k, top_p, min_p) for row in logits.double().softmax(-1).tolist()]
    torch.testing.assert_close(found, torch.tensor(by_hand))


def test_confidence_is_the_models_own_probability() -> None:
    """Else a threshold would mean something else at another temperature, under a filter, a penalty or a bias."""
    bias = torch.tensor([9.0, 0, 0, -9.0, 0, 0, 0, 0])
    for filters in (*FILTERS, {"temperature": 0.0}):
        for scores in (
            LOGITS,
            LOGITS + bias,
            penalised(LOGITS[None, None], present(torch.tensor([[3, 0]]), 8)[:, None], torch.tensor(3.0))[0, 0],
        ):
            seen = proposed(50, scores, **filters)
            torch.testing.assert_close(seen.confidence, LOGITS.softmax(-1)[seen.token])
            torch.testing.assert_close(seen.log_probability, LOGITS.log_softmax(-1).expand(1, 50, -1))
    assert (proposed(50, LOGITS + bias, temperature=0.0).token == 0).all()


def test_temperature_zero_is_the_argmax_and_needs_no_seed() -> None:
    """Else greedy decoding would not be reproducible."""
    assert (proposed(50, temperature=0.0).token == 3).all()


@pytest.mark.parametrize("filters", [{"temperature": 1e-7}, {"temperature": 1e-40}, {"top_p": 1e-46}, {"top_p": 1e-40}])
def test_numbers_too_small_for_float32_leave_the_best_token(filters: dict[str, float]) -> None:
    """Else logits would overflow, or nothing be left to draw from, and the text be padding."""
    scores = LOGITS.clone()
    scores[3] = 1e6
    assert (proposed(50, scores, **filters).token == 3).all()


def test_the_mask_token_is_never_drawn() -> None:
    """Else a text could hold a mask that nobody fills."""
    assert (proposed(20000, temperature=50.0).token != 7).all()
    flat = torch.full((8,), -1e30)
    flat[2] = -500.0  # all but one without any mass
    assert (proposed(2000, flat).token == 2).all()
    full = present(torch.tensor([[7, 7]]), 8)[:, None]  # the text is full of masks
    seen = penalised(LOGITS[None, None], full, torch.tensor(0.5))
    assert (proposed(2000, seen[0, 0], temperature=50.0).token != 7).all()


def test_draws_depend_on_seed_position_and_step_alone() -> None:
    """Else a response would change with the batch or with the block that is computed beside it."""
    logits = LOGITS.expand(6, 4, -1)
    seed, position, step = torch.arange(6)[:, None], torch.arange(4)[None], torch.full((6, 1), 2)
    token = propose(logits, controls_of(rows=6), by_chance(seed, position, step)).token
    one = LOGITS.expand(1, 1, -1)
    alone = by_chance(seed[4:5], position[:, 3:], step[:1])
    assert token[4, 3] == propose(one, controls_of(), alone).token[0, 0]
    cumulative = LOGITS.softmax(-1).double().cumsum(-1)
    drawn = uniform(seed, position, step) * cumulative[-1]
    assert torch.equal(token, (cumulative <= drawn[..., None]).sum(-1))


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    """Else the same number would mean another strength here than in every other `generate`."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, generator=generator)
    ids = torch.tensor([[1, 1, 4], [7, 0, 2]])
    before = logits.clone()
    found = penalised(logits, present(ids, 8)[:, None], torch.tensor(penalty))
    assert torch.equal(logits, before)
    for column in range(3):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits[:, column].clone())  # type: ignore[arg-type]
        torch.testing.assert_close(found[:, column], expected)
    assert not torch.equal(found[0], logits[0])


def test_entropy_and_drift_are_nats() -> None:
    """Else a bound in nats would bound something else; the mask token, of probability 0, must not make it NaN."""
    seen = proposed(2)
    other = (LOGITS / 3).index_fill(0, torch.tensor(7), -1e30).log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=LOGITS[:7]).entropy()
    torch.testing.assert_close(seen.entropy(), entropy.expand(1, 2))
    divergence = torch.nn.functional.kl_div(other[:7], seen.log_probability[0, 0, :7], log_target=True, reduction="sum")
    torch.testing.assert_close(moved(seen.log_probability, other), divergence.expand(1, 2))
    assert (moved(seen.log_probability, seen.log_probability) == 0).all()
    assert seen.drift.shape == (1, 2, 0)


def test_rows_with_other_controls_do_not_touch_each_other() -> None:
    """Else one request's temperature, filter or bias would change what another draws."""
    each = [
        controls_of(0.0),
        controls_of(0.7, top_k=2),
        controls_of(1.0, top_p=0.5),
        controls_of(2.0, min_p=0.3),
        controls_of(1.0, bias=torch.tensor([[9.0, 0, 0, 0, 0, 0, 0, 0]])),
        controls_of(5.0),
    ]

    def joined(name: str, off: float) -> torch.Tensor:
        values = [getattr(one, name) for one in each]
        return torch.cat([torch.tensor([off]) if value is None else value.to(torch.float32) for value in values])

    together = Controls(
        temperature=joined("temperature", 0),
        top_k=joined("top_k", 0).long(),
        top_k_limit=2,
        top_p=joined("top_p", 1),
        min_p=joined("min_p", 0),
        bias=torch.cat([torch.zeros(1, 8) if one.bias is None else one.bias for one in each]),
    )
    rows, count = len(each), 300
    seed = torch.arange(rows * count).view(rows, count)
    found = propose(LOGITS.expand(rows, count, -1), together, by_chance(seed, ZERO, ZERO)).token
    for row, controls in enumerate(each):
        alone = propose(LOGITS.expand(1, count, -1), controls, by_chance(seed[row : row + 1], ZERO, ZERO)).token
        assert torch.equal(found[row], alone[0])
    assert len({tuple(row.tolist()) for row in found}) == rows


def test_a_race_draws_the_distribution_and_near_ones_agree() -> None:
    """Else sampled text would not be the AR model's, or drafts would agree with it no more often than by luck."""
    count = 20_000
    seed, position = torch.arange(count)[:, None], ZERO[None]
    first = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0])
    second = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1, 0.0, 0.0, 0.0])  # total variation distance 0.1
    drawn = [race(one.expand(count, 1, -1), seed, position)[:, 0] for one in (first, second)]
    for tokens, expected in zip(drawn, (first, second), strict=True):
        counts, wanted = tokens.bincount(minlength=8)[:5].double(), expected[:5].double() * count
        inside = wanted > 0
        assert (counts[~inside] == 0).all()
        assert ((counts - wanted)[inside] ** 2 / wanted[inside]).sum() < 20  # chi-square, 4 degrees: p about 0.0005
    assert (drawn[0] == drawn[1]).double().mean() > 0.9 / 1.1
    again = race(first.expand(1, 1, -1), seed[7:8], position)
    assert again == drawn[0][7], "a draw depends on its seed and position alone"
