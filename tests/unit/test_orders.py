"""The states whose weighted log-probabilities add up to a likelihood."""

from itertools import permutations

import pytest
import torch

from opdlm.core.orders import Orders, drawn_orders, every_order, left_to_right


def table(tokens: int, seed: int = 0) -> torch.Tensor:
    """[2^n, n] made-up log-probability of each token for each set of masked tokens (bit i: token i)."""
    return -torch.rand(2**tokens, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(orders: Orders, log_probability: torch.Tensor) -> float:
    sets = (orders.masked * 2 ** torch.arange(orders.masked.shape[1])).sum(-1)
    return float((orders.weight * log_probability[sets]).sum())


def along(order: tuple[int, ...], log_probability: torch.Tensor) -> float:
    """The chain rule in this order."""
    masked, total = set(order), 0.0
    for token in order:
        total += float(log_probability[sum(2**other for other in masked), token])
        masked.remove(token)
    return total


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5])
def test_every_order_is_the_mean_of_the_chain_rules(tokens):
    """Without it the bound could weigh its states as no decoder meets them."""
    made_up = table(tokens)
    orders = list(permutations(range(tokens)))
    expected = sum(along(order, made_up) for order in orders) / len(orders)
    assert score(every_order(tokens), made_up) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_left_to_right_is_one_chain_rule(tokens):
    """Without it the likelihood of `sequential` would be that of another decoding."""
    made_up = table(tokens)
    expected = along(tuple(range(tokens)), made_up)
    assert score(left_to_right(tokens), made_up) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("draws", [1, 3, 8])
def test_draws_estimate_every_order_without_bias(draws):
    """Without it the bound of large blocks would be off by more than its noise."""
    tokens, made_up = 6, table(6)
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor(
        [score(drawn_orders(torch.rand(draws, 1 + tokens, generator=generator)), made_up) for _ in range(600)]
    )
    error = float(values.std()) / 600**0.5
    assert abs(float(values.mean()) - score(every_order(tokens), made_up)) < 4 * error


def test_strata_take_out_noise():
    """Without it as many draws would say less: the number of masked tokens would be left to chance."""
    tokens, draws, generator = 6, 8, torch.Generator().manual_seed(2)
    counts = [drawn_orders(torch.rand(draws, 7, generator=generator)).masked[:draws].sum(-1) for _ in range(50)]
    for count in counts:
        assert (count >= 1).all()
        assert (count.diff() >= 0).all(), "from few to many"
        assert count[0] <= 1 + tokens // draws + 1
        assert count[-1] >= tokens - tokens // draws - 1


@pytest.mark.parametrize("made", [left_to_right(4), every_order(4), drawn_orders(torch.rand(5, 5))])
def test_leads_are_what_writing_from_the_left_decides(made):
    """Without it `greedy` would ask about tokens that no decoder chose in that state."""
    states, tokens = made.leads.nonzero(as_tuple=True)
    assert set(tokens.tolist()) == {0, 1, 2, 3}
    for state, token in zip(states.tolist(), tokens.tolist(), strict=True):
        assert made.masked[state].tolist() == [other >= token for other in range(4)]
