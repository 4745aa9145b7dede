"""The slow, obvious sampler: one row, no cache, the whole text again in every round. The oracle of the tests."""

from collections.abc import Callable, Sequence

import torch

from opdlm.config import GenerationSettings
from opdlm.core.commit import candidates
from opdlm.core.layout import CLEAN, Attention, block_end, block_start
from opdlm.core.types import NEVER, Rollout
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.rules import commit_rule


@torch.no_grad()
def generate_row(
    model: BlockDiffusionModel,
    prompt: Sequence[int],
    settings: GenerationSettings,
    tokens: SpecialTokens,
    seed: int,
    on_round: Callable[[int, int, torch.Tensor], None] | None = None,
) -> Rollout:
    """Write one response.

    Args:
        prompt: token ids, at least one.
        seed: of the row (not of a batch).
        on_round: called with (block start, round, logits [S, V] at the block's predictors) before each commit.

    Returns:
        A rollout of one row.
    """
    size = model.geometry.block_size
    rule = commit_rule(settings.decoding)
    cap = len(prompt) + settings.max_new_tokens
    ids, rounds = list(prompt), [-1] * len(prompt)
    start, forwards, length = int(block_start(torch.tensor(len(prompt)), size)), 0, None
    while length is None:
        end = int(block_end(torch.tensor(start), size))
        new = end - len(ids)
        ids += [tokens.mask_token_id] * new
        rounds += [NEVER] * new
        round_ = 0
        while length is None and NEVER in rounds:
            logits = _block_logits(model, ids, start)
            if on_round is not None:
                on_round(start, round_, logits)
            masked = torch.tensor([fixed == NEVER for fixed in rounds[start:]])
            token, confidence = candidates(
                logits,
                torch.tensor(seed),
                torch.arange(start, end),
                torch.tensor(round_),
                settings.temperature,
                settings.top_k,
                settings.top_p,
            )
            for offset in rule(confidence[None], masked[None])[0].nonzero()[:, 0].tolist():
                ids[start + offset], rounds[start + offset] = int(token[offset]), round_
            round_ += 1
            forwards += 1
            length = _length(ids, rounds, len(prompt), cap, tokens)
        start = end
    return Rollout(
        input_ids=torch.tensor([ids]),
        prompt_length=torch.tensor([len(prompt)]),
        length=torch.tensor([length]),
        end=torch.tensor([len(ids)]),
        commit_round=torch.tensor([rounds], dtype=torch.int16),
        stopped=torch.tensor([ids[length - 1] in tokens.stop_token_ids]),
        forwards=torch.tensor([forwards]),
    )


def _length(ids: list[int], rounds: list[int], begin: int, cap: int, tokens: SpecialTokens) -> int | None:
    """Length of the finished text: up to a stop token or the cap, with no mask before it; None while there is none."""
    for i in range(begin, min(len(ids), cap)):
        if rounds[i] == NEVER:
            return None
        if ids[i] in tokens.stop_token_ids:
            return i + 1
    return cap if len(ids) >= cap else None


def _block_logits(model: BlockDiffusionModel, ids: list[int], start: int) -> torch.Tensor:
    """[S, V] logits that predict the block that begins at `start`, the last of `ids`."""
    position = torch.arange(len(ids))[None]
    copy = (position >= start).long() + CLEAN
    hidden = model.hidden(torch.tensor([ids]), Attention.within(model.geometry, position, copy))
    shift = 1 if model.geometry.prediction == "shifted" else 0
    predictor = (torch.arange(start, len(ids)) - shift).clamp(min=0)  # nothing predicts token 0, which is never masked
    return model.logits(hidden[0, predictor])
