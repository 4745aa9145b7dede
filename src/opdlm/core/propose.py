"""What one denoising step proposes: a token for every position, how sure the model is of it, and how that has changed.

Shape letters: B rows, S positions of the block, H steps of history, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from opdlm.core.noise import uniform

_COLDEST = 1e-5
"""Below this temperature a logit that is divided by it may be no float32, and nearly all mass is on one token."""


@dataclass(frozen=True)
class Proposals:
    """Candidates for the positions of a block; what the commit rules decide on.

    Attributes:
        token: [B, S] int64.
        confidence: [B, S] float32, the model's own probability for `token`: at temperature 1, before any filter.
        log_probability: [B, S, V] float32, the model's own distribution, likewise.
        drift: [B, S, H] float32, nats: KL(step || step before) of the block's last H steps, the newest last; inf where
            the block had no step before. H is 0 unless the rule asks for a history.
    """

    token: torch.Tensor
    confidence: torch.Tensor
    log_probability: torch.Tensor
    drift: torch.Tensor

    def entropy(self) -> torch.Tensor:
        """[B, S] float32, nats."""
        return -(self.log_probability.exp() * self.log_probability).sum(-1)


@dataclass(frozen=True)
class Controls:
    """How each row's tokens are drawn; every field but `top_k_limit` is [B], or None where no row uses it.

    Attributes:
        temperature: float32; 0 takes the highest score, and so does anything below 1e-5.
        top_k: int64; 0 is off. top_k_limit: the largest of them, known to the host.
        top_p: float32; 1 is off.
        min_p: float32; 0 is off.
        repetition_penalty: float32; 1 is off.
        presence_penalty, frequency_penalty: float32; 0 is off. Both or neither.
        bias: [B, V] float32, added to the scores.
    """

    temperature: torch.Tensor | None = None
    top_k: torch.Tensor | None = None
    top_k_limit: int = 0
    top_p: torch.Tensor | None = None
    min_p: torch.Tensor | None = None
    repetition_penalty: torch.Tensor | None = None
    presence_penalty: torch.Tensor | None = None
    frequency_penalty: torch.Tensor | None = None
    bias: torch.Tensor | None = None


def propose(
    logits: torch.Tensor,
    controls: Controls,
    pick: Callable[[torch.Tensor], torch.Tensor],
    has: torch.Tensor | None = None,
    written: torch.Tensor | None = None,
) -> Proposals:
    """A token for every position, and the model's own opinion of it.

    Args:
        logits: [B, S, V] float32, the model's own.
        controls: how tokens are drawn.
        pick: probabilities [B, S, V] -> [B, S], the random draw: `draw` or `race` with their random numbers.
        has: [B, 1 or S, V] bool, the tokens that the text has before a position: what a repetition penalty looks at.
        written: [B, 1 or S, V] float32, how often the response has each token before a position: what a presence and a
            frequency penalty look at.

    Returns:
        Proposals without a history.
    """
    token = chosen(logits, controls, pick, has, written)
    log_probability = logits.log_softmax(-1)
    confidence = log_probability.gather(-1, token[..., None])[..., 0].exp()
    return Proposals(token, confidence, log_probability, confidence.new_empty(*confidence.shape, 0))


def chosen(
    logits: torch.Tensor,
    controls: Controls,
    pick: Callable[[torch.Tensor], torch.Tensor],
    has: torch.Tensor | None = None,
    written: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, S] int64: the token alone; as `propose`."""
    scores = logits
    if controls.repetition_penalty is not None:
        assert has is not None
        scores = penalised(scores, has, controls.repetition_penalty[:, None, None])
    if controls.presence_penalty is not None:
        assert written is not None
        assert controls.frequency_penalty is not None
        presence, frequency = controls.presence_penalty[:, None, None], controls.frequency_penalty[:, None, None]
        scores = scores - presence * (written > 0) - frequency * written  # as the OpenAI API defines them
    if controls.bias is not None:
        scores = scores + controls.bias[:, None]
    token = scores.argmax(-1)
    if controls.temperature is not None:
        greedy = (controls.temperature < _COLDEST)[:, None]
        heat = controls.temperature.masked_fill(greedy[:, 0], 1.0)[:, None, None]
        token = torch.where(greedy, token, pick(filtered(scores / heat, controls)))
    return token


def moved(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """[...] nats: KL(now || before) of log-probabilities [..., V]."""
    return (now.exp() * (now - before)).sum(-1)


def draw(probability: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """[...] int64: the outcome of `probability` [..., V] (any sum) at `chance` [...] in [0, 1)."""
    cumulative = probability.to(chance.dtype).cumsum(-1)
    token = torch.searchsorted(cumulative, (chance * cumulative[..., -1])[..., None], right=True)[..., 0]
    return token.clamp(max=probability.shape[-1] - 1)


def race(probability: torch.Tensor, seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """[B, S] int64: one outcome of `probability` [B, S, V] (any sum), by a random number for each token.

    Two distributions that are near each other have the same outcome more often than not when `seed` [B, 1] and
    `position` [B, S] are equal: with probability at least (1 - d) / (1 + d), d their total variation distance (the
    Gumbel coupling; arXiv 2408.07978).
    """
    token = torch.arange(probability.shape[-1], device=probability.device)
    wait = -uniform(seed[..., None], position[..., None], token).log()  # of a clock that ticks once a unit
    return (probability.to(wait.dtype) / wait).argmax(-1)


def filtered(logits: torch.Tensor, controls: Controls) -> torch.Tensor:
    """Softmax of `logits` [B, S, V] without what the filters take out; they apply in this order.

    `top_k`: all but the k most probable. `top_p`: all but the nucleus (arXiv 1904.09751). `min_p`: whatever is less
    probable than `min_p` times the most probable (arXiv 2407.01082).
    """
    if controls.top_k is not None:
        values = logits.topk(min(controls.top_k_limit, logits.shape[-1]), dim=-1).values
        index = (controls.top_k - 1).clamp(0, values.shape[-1] - 1)[:, None, None].expand(*values.shape[:2], 1)
        outside = (logits < values.gather(-1, index)) & (controls.top_k > 0)[:, None, None]
        logits = logits.masked_fill(outside, float("-inf"))
    probability = logits.softmax(-1)
    if controls.top_p is not None:
        some = controls.top_p.clamp(min=torch.finfo(torch.float32).tiny)  # at 0 nothing would be left
        share = some.masked_fill(controls.top_p >= 1, torch.inf)[:, None, None]
        descending, order = probability.sort(-1, descending=True)
        outside = descending.cumsum(-1) - descending >= share  # the token that crosses top_p still belongs
        probability = probability.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)
    if controls.min_p is not None:
        least = controls.min_p[:, None, None] * probability.amax(-1, keepdim=True)
        probability = probability.masked_fill(probability < least, 0.0)
    return probability


def present(ids: torch.Tensor, vocabulary: int, where: torch.Tensor | None = None) -> torch.Tensor:
    """[B, V] bool: the tokens of the texts `ids` [B, T]; `where` [B, T] bool: of part of these."""
    counted = torch.ones_like(ids, dtype=torch.bool) if where is None else where
    found = torch.zeros(len(ids), vocabulary, dtype=torch.int8, device=ids.device)
    return found.scatter_reduce_(1, ids, counted.to(torch.int8), "amax").bool()


def counted(ids: torch.Tensor, vocabulary: int, where: torch.Tensor) -> torch.Tensor:
    """[B, V] float32: how often the texts `ids` [B, T] have each token `where` [B, T] bool says so."""
    return torch.zeros(len(ids), vocabulary, device=ids.device).scatter_add_(1, ids, where.float())


def penalised(logits: torch.Tensor, has: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Logits [B, S, V] with every token that `has` [B, 1 or S, V] less likely, where `penalty` [B, 1, 1] > 1.

    Positive logits are divided, negative ones multiplied by `penalty` (CTRL, arXiv 1909.05858).
    """
    return torch.where(has, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
