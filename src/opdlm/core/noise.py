"""Uniform random numbers as a pure function of a row's seed, a position and a step.

A counter-based generator: no state, so a row draws the same numbers whatever else is in its batch, on every device, and
after every restart. The mixing is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import torch

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift: torch's >> on int64 keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x + _GAMMA
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def uniform(seed: torch.Tensor, *counters: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1) for each element of the broadcast int64 tensors `seed` and `counters`.

    On Apple's GPUs, which have no float64: float32 with the first 24 bits.
    """
    state = _mix(seed)
    for counter in counters:
        state = _mix(state ^ counter)  # not ^ _mix(counter): then equal seed and counter would cancel
    if state.device.type == "mps":
        return _shift_right(state, 40).to(torch.float32) * 2.0**-24
    return _shift_right(state, 11).to(torch.float64) * 2.0**-53
