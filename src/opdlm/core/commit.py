"""Which masked tokens are committed in this denoising step: the commit rules.

Shape letters: B rows, S positions of the block, H steps of history, V vocabulary. Every rule is a pure function
(proposals, masked [B, S], its numbers) -> commit [B, S] bool that commits at least one masked token of each row with
any, and nothing that is not masked. A number of a rule is one for all rows, or a tensor [B, 1] with one for each.
"""

from collections.abc import Callable

import torch

from opdlm.core.propose import Proposals

Number = float | torch.Tensor


CommitRule = Callable[..., torch.Tensor]
"""(proposals, masked, the rule's numbers by name) -> commit. Proposals where `masked` is False are ignored."""


def static(seen: Proposals, masked: torch.Tensor, tokens_per_step: Number) -> torch.Tensor:
    """The `tokens_per_step` most confident (low-confidence remasking of LLaDA, arXiv 2502.09992)."""
    return masked & (_rank(seen.confidence.masked_fill(~masked, -1.0)) < tokens_per_step)


def sequential(seen: Proposals, masked: torch.Tensor, tokens_per_step: Number) -> torch.Tensor:
    """The `tokens_per_step` leftmost."""
    return masked & (masked.cumsum(-1) <= tokens_per_step)


def dynamic(seen: Proposals, masked: torch.Tensor, threshold: Number) -> torch.Tensor:
    """All above `threshold`, else the single best (Fast-dLLM, arXiv 2505.22618; the paper's rollouts)."""
    return (masked & (seen.confidence > threshold)) | static(seen, masked, 1)


def prefix(seen: Proposals, masked: torch.Tensor, threshold: Number) -> torch.Tensor:
    """From left to right, all up to the first that is not above `threshold`, at least the leftmost.

    What is committed in earlier steps has no gaps then: the student never predicts a token without all of its left
    context but what is committed with it, as the teacher never does.
    """
    sure = (seen.confidence > threshold) | ~masked
    return masked & (sure.cumprod(-1).bool() | sequential(seen, masked, 1))


def factor(seen: Proposals, masked: torch.Tensor, factor: Number) -> torch.Tensor:
    """The n most confident, n the largest with (n + 1)(1 - c_n) < `factor`, c_n the n-th highest confidence.

    Fast-dLLM's second rule (arXiv 2505.22618, section 3.3): the more tokens at once, the surer each must be.
    """
    confidence = seen.confidence.masked_fill(~masked, -1.0)
    rank = _rank(confidence)  # n - 1
    allowed = (rank + 2) * (1 - confidence) < factor  # grows with n, so what is allowed is a prefix of the ranking
    return masked & (allowed | (rank < 1))


def entropy_bound(seen: Proposals, masked: torch.Tensor, bound: Number, by_confidence: Number) -> torch.Tensor:
    """The longest prefix of the ranking whose summed entropies, the largest left out, are at most `bound` nats.

    That sum bounds the information that the tokens have about each other. EB-Sampler (arXiv 2505.24857) ranks by any
    measure of error, here entropy or `by_confidence`; by entropy it is the `EntropyBoundSampler` of transformers.
    """
    entropy = seen.entropy().masked_fill(~masked, torch.inf)
    doubt = -seen.confidence.masked_fill(~masked, -1.0)
    measure = torch.where(torch.as_tensor(by_confidence, device=masked.device).bool(), doubt, entropy)
    order = measure.argsort(dim=-1, stable=True)
    ranked = entropy.gather(-1, order)
    others = ranked.cumsum(-1) - ranked.cummax(-1).values  # behind the masked ones: inf - inf, which is never <= bound
    return masked & (others <= bound).gather(-1, order.argsort(-1))


def klass(seen: Proposals, masked: torch.Tensor, threshold: Number, drift: Number, history: Number) -> torch.Tensor:
    """All above `threshold` whose distribution moved by less than `drift` nats in each of the last `history` steps,
    else the single best (KLASS, arXiv 2511.05664)."""
    limit, count = (torch.as_tensor(n, device=masked.device)[..., None] for n in (drift, history))
    age = torch.arange(seen.drift.shape[-1], 0, -1, device=masked.device)  # 1 for the newest
    settled = ((seen.drift < limit) | (age > count)).all(-1)
    ready = masked & (seen.confidence > threshold) & settled
    return torch.where(ready.any(-1, keepdim=True), ready, static(seen, masked, 1))


def without_early_ends(committed: torch.Tensor, early: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """[B, S] what a rule `committed`, without the stop tokens where `early` [B, S]; the leftmost where nothing is left.

    A stop token is early where a mask stands before it: all behind it would be thrown away for a guess.
    """
    kept = committed & ~early
    return kept | ((masked & (masked.cumsum(-1) == 1)) & ~kept.any(-1, keepdim=True))


def _rank(values: torch.Tensor) -> torch.Tensor:
    """[B, S] place of each value in its row's order, 0 the highest; of equal values the left one comes first."""
    return values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
