"""What one round proposes: a token for every position, how sure the model is of it, and how that has changed.

Shape letters: B rows, S positions of the block, H rounds of history, V vocabulary.
"""

from dataclasses import dataclass

import torch

from opdlm.core.noise import uniform


@dataclass(frozen=True)
class Proposals:
    """Candidates for the positions of a block; what the commit rules decide on.

    Attributes:
        token: [B, S] int64.
        confidence: [B, S] float32, the model's own probability for `token`: at temperature 1, before any filter.
        log_probability: [B, S, V] float32, the model's own distribution, likewise.
        drift: [B, S, H] float32, nats: KL(round || round before) of the block's last H rounds, the newest last; inf
            where the block had no round before. H is 0 unless the rule asks for a history.
    """

    token: torch.Tensor
    confidence: torch.Tensor
    log_probability: torch.Tensor
    drift: torch.Tensor

    def entropy(self) -> torch.Tensor:
        """[B, S] float32, nats."""
        return -(self.log_probability.exp() * self.log_probability).sum(-1)


def propose(
    logits: torch.Tensor,
    scores: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    round_: torch.Tensor,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Proposals:
    """A token for every position, from `scores`, and the model's opinion of it, from `logits`.

    Args:
        logits: [B, S, V] float32, the model's own.
        scores: [B, S, V] float32, what the token is chosen by: the logits, with any penalty and bias.
        seed, position, round_: int64, broadcastable to [B, S]; they alone decide the random draw.
        temperature: 0 takes the highest score.
        top_k, top_p, min_p: filters of the sampled distribution; 0, 1.0 and 0.0 are off.

    Returns:
        Proposals without a history.
    """
    if temperature == 0:
        token = scores.argmax(-1)
    else:
        token = draw(filtered(scores / temperature, top_k, top_p, min_p), uniform(seed, position, round_))
    log_probability = logits.log_softmax(-1)
    confidence = log_probability.gather(-1, token[..., None])[..., 0].exp()
    return Proposals(token, confidence, log_probability, confidence.new_empty(*confidence.shape, 0))


def moved(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """[...] nats: KL(now || before) of log-probabilities [..., V]."""
    return (now.exp() * (now - before)).sum(-1)


def draw(probability: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """[...] int64: the outcome of `probability` [..., V] (any sum) at `chance` [...] in [0, 1)."""
    cumulative = probability.to(chance.dtype).cumsum(-1)
    token = torch.searchsorted(cumulative, (chance * cumulative[..., -1])[..., None], right=True)[..., 0]
    return token.clamp(max=probability.shape[-1] - 1)


def filtered(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    """Softmax of `logits` [..., V] without what the filters take out; they apply in this order.

    `top_k`: all but the k most probable. `top_p`: all but the nucleus (arXiv 1904.09751). `min_p`: whatever is less
    probable than `min_p` times the most probable (arXiv 2407.01082).
    """
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probability = logits.softmax(-1)
    if top_p < 1.0:
        descending, order = probability.sort(-1, descending=True)
        outside = descending.cumsum(-1) - descending >= top_p  # the token that crosses top_p still belongs
        probability = probability.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)
    if min_p > 0.0:
        probability = probability.masked_fill(probability < min_p * probability.amax(-1, keepdim=True), 0.0)
    return probability


def penalised(logits: torch.Tensor, ids: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits [B, S, V] with every token of the row's text `ids` [B, T] made less likely, if `penalty` > 1.

    Positive logits are divided, negative ones multiplied by `penalty` (CTRL, arXiv 1909.05858).
    """
    present = torch.zeros(logits.shape[0], logits.shape[-1], dtype=torch.bool, device=logits.device)
    present.scatter_(1, ids, True)
    return torch.where(present[:, None], torch.where(logits > 0, logits / penalty, logits * penalty), logits)
