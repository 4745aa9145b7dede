"""Schedules against the numbers of the paper and its launchers."""

import pytest

from opdlm.core.schedules import learning_rate, planned_updates, response_length


@pytest.mark.parametrize(
    ("rollout", "shape", "expected"),
    [(0, "cosine", 100), (50, "cosine", 1244), (100, "cosine", 4000), (900, "cosine", 4000), (30, "linear", 1272)],
)
def test_response_length_follows_the_ramp(rollout: int, shape: str, expected: int) -> None:
    """Else the curriculum would not be the published one: 100 to 4,000 tokens over 100 rollouts.

    Cosine at the middle: 100 + 3900 (1 - cos(pi/4)) = 1242.3, to the nearest multiple of 4.
    """
    assert response_length(rollout, 100, 4000, 100, shape, 4) == expected  # type: ignore[arg-type]


def test_response_length_is_in_whole_blocks() -> None:
    """Else the last block would be cut in the middle, or a ramp that starts low would allow no token."""
    lengths = [response_length(i, 1, 50, 10, "linear", 8) for i in range(12)]
    assert all(length % 8 == 0 and length >= 8 for length in lengths)
    assert lengths == sorted(lengths)
    assert response_length(0, 10, 40, 0, "cosine", 4) == 40


def test_learning_rate_warms_up_and_decays() -> None:
    """Else the first updates would be too large, or the last ones would not be at the final rate."""
    rates = [learning_rate(i, 105, 1e-5, 1e-6, 5) for i in range(105)]
    assert rates[:5] == pytest.approx([2e-6, 4e-6, 6e-6, 8e-6, 1e-5])
    assert rates[5] == pytest.approx(1e-5)
    assert rates[-1] == pytest.approx(1e-6)
    assert rates[5 + 49] > 5.5e-6 > rates[5 + 50]
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert learning_rate(200, 105, 1e-5, 1e-6, 5) == pytest.approx(1e-6)
    assert learning_rate(0, 1, 1e-5, 1e-6, 0) == pytest.approx(1e-5)


@pytest.mark.parametrize("prompts", [1, 5, 6, 7])
@pytest.mark.parametrize(("per_rollout", "rows"), [(3, 2), (6, 6), (8, 1)])
def test_updates_are_counted_without_counting(prompts: int, per_rollout: int, rows: int) -> None:
    """Else the schedule would end early or late; and a loop over a billion rollouts would never begin."""
    sizes = [len(range(prompts)[start : start + per_rollout]) for start in range(0, prompts, per_rollout)]
    for rollouts in range(1, 12):
        updates = sum(-(-sizes[index % len(sizes)] // rows) for index in range(rollouts))
        assert planned_updates(rollouts, prompts, per_rollout, rows) == updates
    assert planned_updates(10**9, prompts, per_rollout, rows) >= 10**9
