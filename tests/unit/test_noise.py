"""Random numbers without a state."""

import math

import torch

from opdlm.core.noise import uniform


def t(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_known_values_stay() -> None:
    """Else an upgrade would change every rollout of every seed, and no run could be repeated."""
    drawn = uniform(t(0, 1, 2**40, -1), t(0, 1, 2, 3), t(0, 0, 7, 9))
    assert drawn.dtype == torch.float64
    expected = [splitmix(0, 0, 0), splitmix(1, 1, 0), splitmix(2**40, 2, 7), splitmix(-1, 3, 9)]
    assert drawn.tolist() == expected
    assert (expected[0], expected[2]) == (0.13870941014555427, 0.2763143849241868)


def splitmix(seed: int, *counters: int) -> float:
    """The same with Python's integers."""
    bits = 2**64 - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & bits
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
        return x ^ (x >> 31)

    state = mix(seed & bits)
    for counter in counters:
        state = mix(state ^ (counter & bits))
    return (state >> 11) / 2**53


def test_it_does_not_depend_on_the_batch() -> None:
    """Else a response would change with its neighbours in the batch."""
    seed, position = torch.arange(50)[:, None], torch.arange(30)[None]
    together = uniform(seed, position, t(3))
    assert together.shape == (50, 30)
    assert torch.equal(together[17, 4], uniform(torch.tensor(17), torch.tensor(4), torch.tensor(3)))
    assert torch.equal(together.flip(0), uniform(seed.flip(0), position, t(3)))


def test_seed_and_position_do_not_cancel() -> None:
    """Else row 7 at position 7 would draw what row 8 draws at position 8, and (5, 9) what (9, 5) draws."""
    drawn = uniform(torch.arange(60)[:, None], torch.arange(60)[None], t(0))
    assert len(drawn.flatten().unique()) == 60 * 60


def test_it_is_uniform_and_uncorrelated() -> None:
    """Else samples would favour tokens at one end of the vocabulary, or rows with neighbouring seeds would agree."""
    n = 200
    drawn = uniform(torch.arange(n)[:, None], torch.arange(n)[None], t(1))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 4 * math.sqrt(1 / 12) / n
    assert abs(drawn.var() - 1 / 12) < 4 * math.sqrt(1 / 180) / n
    cells = torch.histc(drawn.float().flatten(), 64, 0, 1)
    chi_square = ((cells - n * n / 64) ** 2 / (n * n / 64)).sum()
    assert chi_square < 63 + 4 * math.sqrt(2 * 63)
    for other in (drawn.roll(1, 0), drawn.roll(1, 1), uniform(torch.arange(n)[:, None], torch.arange(n)[None], t(2))):
        correlation = torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 4 / n
