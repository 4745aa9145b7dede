"""Are all weights finite?"""

import math
from collections.abc import Iterable

import torch

from opdlm.parallel.tensors import whole_tensor


def all_finite(weights: Iterable[torch.Tensor]) -> bool:
    """Whether no weight is infinite or NaN: one pass over them, and one question to the device.

    Both survive in a norm. The Euclidean one is the quickest, but squares of large finite weights overflow in it; then
    the largest absolute value decides, a pass three times as slow.
    """
    floating = [weight.detach() for weight in weights if weight.is_floating_point()]
    norms = (whole_tensor(torch.nn.utils.get_total_norm(floating, order)) for order in (2.0, math.inf))
    return any(math.isfinite(norm.item()) for norm in norms)
