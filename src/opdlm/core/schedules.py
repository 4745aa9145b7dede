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


def planned_updates(rollouts: int, prompts: int, prompts_per_rollout: int, rows_per_update: int) -> int:
    """Updates of that many rollouts; the last rollout of each epoch takes the prompts that are left."""
    full, left = divmod(prompts, prompts_per_rollout)
    of_full, of_last = -(-prompts_per_rollout // rows_per_update), -(-left // rows_per_update)
    epochs, further = divmod(rollouts, full + (left > 0))
    return epochs * (full * of_full + of_last) + further * of_full
