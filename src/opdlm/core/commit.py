"""Which masked tokens are fixed in this round: candidates with their confidence, and the commit rules.

Shape letters: B rows, S positions of the block, V vocabulary. Every rule is a pure function
(confidence [B, S], masked [B, S]) -> commit [B, S] bool that commits at least one masked token of each row with any.
"""

from typing import Protocol

import torch

from opdlm.core.noise import uniform


class CommitRule(Protocol):
    """Chooses what to fix. `confidence` is float32 in [0, 1]; entries where `masked` is False are ignored."""

    def __call__(self, confidence: torch.Tensor, masked: torch.Tensor) -> torch.Tensor: ...


def static(confidence: torch.Tensor, masked: torch.Tensor, tokens_per_round: int = 1) -> torch.Tensor:
    """The `tokens_per_round` most confident (low-confidence remasking of LLaDA, arXiv 2502.09992)."""
    order = confidence.masked_fill(~masked, -1.0).argsort(dim=-1, descending=True, stable=True)
    return masked & (order.argsort(dim=-1) < tokens_per_round)


def sequential(confidence: torch.Tensor, masked: torch.Tensor, tokens_per_round: int = 1) -> torch.Tensor:
    """The `tokens_per_round` leftmost."""
    return masked & (masked.cumsum(-1) <= tokens_per_round)


def dynamic(confidence: torch.Tensor, masked: torch.Tensor, threshold: float = 0.9) -> torch.Tensor:
    """All above `threshold`, else the single best (Fast-dLLM, arXiv 2505.22618; the paper's rollouts)."""
    return (masked & (confidence > threshold)) | static(confidence, masked)


def candidates(
    logits: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    round_: torch.Tensor,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for every position, and the model's own probability for it at temperature 1, before any filter.

    Args:
        logits: [..., V] float32.
        seed, position, round_: int64, broadcastable to [...]; they alone decide the random draw.
        temperature: 0 takes the most probable token.
        top_k, top_p: filters of the sampled distribution; 0 and 1.0 are off.

    Returns:
        (token [...] int64, confidence [...] float32).
    """
    log_probability = logits.log_softmax(-1)
    if temperature == 0:
        confidence, token = log_probability.max(-1)
        return token, confidence.exp()
    probability = filtered(logits / temperature, top_k, top_p)
    chance = uniform(seed, position, round_)
    cumulative = probability.to(chance.dtype).cumsum(-1)
    draw = chance * cumulative[..., -1]
    token = torch.searchsorted(cumulative, draw[..., None], right=True).clamp(max=logits.shape[-1] - 1)
    return token[..., 0], log_probability.gather(-1, token)[..., 0].exp()


def filtered(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """Softmax of `logits` [..., V] with all but the top-k, then all but the nucleus (arXiv 1904.09751), set to zero."""
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probability = logits.softmax(-1)
    if top_p < 1.0:
        descending, order = probability.sort(-1, descending=True)
        outside = descending.cumsum(-1) - descending >= top_p  # the token that crosses top_p still belongs
        probability = probability.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)
    return probability
