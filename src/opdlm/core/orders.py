"""The states of a block from which the probability of its tokens is read off, by the order in which they are written.

Shape letters: n tokens that are scored, in order of position, K states. A state masks some of these tokens; whatever
stands behind them in the block is masked too. A model's log-probability of each token in each state, times `weight` and
summed, is the score of the block.
"""

from dataclasses import dataclass
from math import comb

import torch


@dataclass(frozen=True)
class Orders:
    """Attributes:
    masked: [K, n] bool. weight: [K, n] float64, 0 where a state does not score a token.
    """

    masked: torch.Tensor
    weight: torch.Tensor

    @property
    def leads(self) -> torch.Tensor:
        """[K, n] bool: the first masked token of each state that masks all behind it: what writing from left to right
        decides there."""
        from_left = (self.masked[:, 1:] >= self.masked[:, :-1]).all(-1)
        first = self.masked & (self.masked.cumsum(-1) == 1)
        return first & from_left[:, None]


def left_to_right(tokens: int) -> Orders:
    """The chain rule, one token after the other: exactly the log-probability with which they are written so. K = n."""
    return Orders(torch.ones(tokens, tokens, dtype=torch.bool).triu(), torch.eye(tokens, dtype=torch.float64))


def every_order(tokens: int) -> Orders:
    """The mean over all n! orders of the log-probability with which one token after the other is written.

    A state that masks m tokens is on the way of 1 in C(n, m) orders, and each of its m tokens comes next in 1 of m.
    K = 2^n - 1.
    """
    masked = torch.arange(1, 2**tokens)[:, None] >> torch.arange(tokens) & 1 == 1
    share = torch.tensor([1 / (m * comb(tokens, m)) for m in range(1, tokens + 1)], dtype=torch.float64)
    return Orders(masked, masked * share[masked.sum(-1, keepdim=True) - 1])


def drawn_orders(chance: torch.Tensor) -> Orders:
    """An unbiased estimate of `every_order` from k draws; the states of `left_to_right` stand behind, with weight 0.

    The number of masked tokens m is stratified (arXiv 2502.09992, appendix B), the tokens are drawn uniformly, and each
    weighs n/m: the weight 1/t of the masked-diffusion bound (arXiv 2503.09573). K = k + n.

    Args:
        chance: [k, 1 + n] uniform in [0, 1).
    """
    draws, tokens = len(chance), chance.shape[1] - 1
    stratum = (torch.arange(draws) + chance[:, 0]) / draws
    count = 1 + (stratum * tokens).long()[:, None]
    masked = chance[:, 1:].argsort(-1).argsort(-1) < count
    ordered = left_to_right(tokens).masked
    weight = torch.cat([masked * (tokens / (count * draws)), torch.zeros(tokens, tokens, dtype=torch.float64)])
    return Orders(torch.cat([masked, ordered]), weight)
