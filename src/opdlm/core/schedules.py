"""Schedules: a step in, a value out."""

import math
from typing import Literal


def response_length(
    rollout: int, start: int, end: int, ramp_rollouts: int, shape: Literal["cosine", "linear"], block_size: int
) -> int:
    """Longest response, in tokens, of rollout number `rollout` (from 0); a multiple of the block size.

    The launchers' "cosine" ramp is start + (end - start) (1 - cos(pi/2 p)); the paper's text says linear.
    """
    progress = 1.0 if ramp_rollouts == 0 else min(1.0, rollout / ramp_rollouts)
    share = progress if shape == "linear" else 1.0 - math.cos(math.pi / 2 * progress)
    return max(block_size, round((start + (end - start) * share) / block_size) * block_size)


def learning_rate(update: int, updates: int, peak: float, final: float, warmup: int) -> float:
    """Linear warm-up to `peak` over `warmup` updates, then half a cosine down to `final` at the last update."""
    if update < warmup:
        return peak * (update + 1) / warmup
    progress = min(1.0, (update - warmup) / max(1, updates - 1 - warmup))
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
