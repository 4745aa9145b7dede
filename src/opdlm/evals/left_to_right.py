"""How likely a model is to write given text from left to right, one token a step.

For an AR model that is its likelihood, by the chain rule. It is just as exact for a model with masks, of the text that
it samples with `sequential` at temperature 1: each token is predicted from the state in which the decoder meets it, all
before it known, the rest of its block masked. It says nothing of other orders.

Shape letters: B rows, T positions, S block size, M scored tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch

from opdlm.core.layout import Attention
from opdlm.core.states import StateChoice, select_states
from opdlm.core.types import NEVER, Rollout, StateBatch
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel

Text = tuple[list[int], int]
"""Token ids, and how many of them are given: the rest is scored."""


@torch.inference_mode()
def log_likelihoods(model: BlockDiffusionModel, texts: Sequence[Text], *, batch_size: int = 8) -> list[float]:
    """Nats, at most 0, of the scored tokens of each text.

    Args:
        model: in eval mode. With NO_MASK its own causal pass counts, as for an AR model or a lossless one.
        texts: at least one token of each is given.
        batch_size: texts in one forward pass; does not change the result beyond rounding.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index][0]))  # rows of one length need no padding
    found = [0.0] * len(texts)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        rollout = _as_written(
            [texts[index] for index in chosen], model.geometry.block_size, max(model.mask_token_id, 0)
        ).to(model.device)
        row, log_probability = _causal(model, rollout) if model.mask_token_id == NO_MASK else _masked(model, rollout)
        sums = torch.zeros(len(chosen), dtype=torch.float64).index_add(0, row.cpu(), log_probability.cpu().double())
        for index, value in zip(chosen, sums.tolist(), strict=True):
            found[index] = value
    return found


def _as_written(texts: Sequence[Text], block_size: int, filler: int) -> Rollout:
    """The rollout of a decoder that wrote the scored tokens one by one."""
    length = torch.tensor([len(ids) for ids, _ in texts])
    given = torch.tensor([count for _, count in texts])
    end = -(-length // block_size) * block_size
    position = torch.arange(int(end.max()))
    ids = torch.full((len(texts), len(position)), filler)
    for row, (tokens, _) in enumerate(texts):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    begin = torch.maximum(position // block_size * block_size, given[:, None])  # where writing began in this block
    step = (position - begin).masked_fill(position < given[:, None], -1)
    step = step.masked_fill(position >= length[:, None], NEVER).to(torch.int16)
    no = torch.zeros_like(length)
    return Rollout(ids, given, length, end, step, stopped=no.bool(), forwards=no)


def _causal(model: BlockDiffusionModel, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """[M] row and log-probability of each scored token."""
    position = torch.arange(rollout.input_ids.shape[1], device=rollout.length.device)
    scored = (position >= rollout.prompt_length[:, None]) & (position < rollout.length[:, None])
    row, target = scored.nonzero(as_tuple=True)
    hidden = model.causal_hidden(rollout.input_ids)[row, target - 1]
    return row, _of_tokens(model, hidden, rollout.input_ids[row, target])


def _masked(model: BlockDiffusionModel, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, each in the state in which all before it is known and nothing behind."""
    states = select_states(
        rollout,
        model.geometry,
        StateChoice("all"),
        torch.zeros_like(rollout.length),
        mask_token_id=model.mask_token_id,
        capacity=model.packing_capacity,
    )
    attention = Attention.within(model.geometry, states.position_ids, states.stream, states.document)
    last = _last_states(states, rollout.input_ids.shape[1])
    hidden = model.hidden(states.input_ids, attention)[states.sequence[last], states.predictor[last]]
    row, target = states.row[last], states.position[last]
    return row, _of_tokens(model, hidden, rollout.input_ids[row, target])


def _last_states(states: StateBatch, width: int) -> torch.Tensor:
    """Index of the last state in which each token is masked: step by step, it is the leftmost there."""
    key = states.row * width + states.position
    index = torch.arange(len(key), device=key.device)
    last = index.new_full((int(key.max()) + 1,), -1).scatter_reduce(0, key, index, "amax")
    return last[last >= 0]


def _of_tokens(model: BlockDiffusionModel, hidden: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    return model.logits(hidden).log_softmax(-1).gather(-1, token[:, None])[:, 0]
