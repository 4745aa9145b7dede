"""Proposals where a grammar allows only some tokens at each position.

Shape letters: B rows, S positions, W words of 32 tokens each, V vocabulary.
"""

import torch

from opdlm.core.propose import Proposals

_LEAST = -1e30
"""Log-probability of what is not allowed: finite, so that it times a probability of 0 is 0."""


def unpacked(bits: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """[B, S, V] bool of [B, S, W] int32: bit t % 32 of word t // 32 stands for token t."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).bool().flatten(-2)[..., :vocabulary]


def limited(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """`logits` [B, S, V], minus infinity where not `allowed`: no bias and no filter brings such a token back."""
    return logits.masked_fill(~allowed, -torch.inf)


def limited_proposals(
    logits: torch.Tensor, within: torch.Tensor, token: torch.Tensor, masked: torch.Tensor
) -> Proposals:
    """Of the tokens [B, S] of a draft that the grammar allows as a whole.

    At the leftmost masked position everything before is known, and the distribution is the model's own among what is
    allowed there. Behind it, what is allowed depends on the draft's other tokens. Such a token's confidence is the
    larger one of two: the model's own probability of it; and its probability among what is allowed, times the
    confidences of all masked ones before it, without which it need not be allowed.

    Args:
        logits: [B, S, V] the model's own. within: the same, minus infinity where the draft before allows no token.
        masked: [B, S] bool.
    """
    own, among = logits.log_softmax(-1), within.log_softmax(-1).clamp(min=_LEAST)
    one = token[..., None]
    sure = among.gather(-1, one)[..., 0].exp()
    open_ = sure.masked_fill(~masked, 1.0)
    before = torch.cat([torch.ones_like(open_[:, :1]), open_.cumprod(-1)[:, :-1]], -1)
    confidence = torch.maximum(own.gather(-1, one)[..., 0].exp(), sure * before)
    leftmost = masked & (masked.cumsum(-1) == 1)
    log_probability = torch.where(leftmost[..., None], among, own)
    return Proposals(token, confidence, log_probability, confidence.new_empty(*confidence.shape, 0))
