"""The slow, obvious sampler: one row, no cache, the whole text again in every step. The oracle of the tests."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch

from opdlm.config import GenerationSettings
from opdlm.core.commit import CommitRule
from opdlm.core.layout import CLEAN, Attention
from opdlm.core.noise import uniform
from opdlm.core.propose import Controls, Proposals, counted, draw, moved, present, propose
from opdlm.core.types import NEVER, Rollout
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.rules import RULES, history


@torch.no_grad()
def generate_row(
    model: BlockDiffusionModel,
    prompt: Sequence[int],
    settings: GenerationSettings,
    tokens: SpecialTokens,
    seed: int,
    on_step: Callable[[int, int, torch.Tensor], None] | None = None,
    fill: bool = False,
) -> Rollout:
    """Write one response.

    Args:
        prompt: token ids, at least one.
        seed: of the row (not of a batch).
        on_step: called with (block start, step, logits [S, V] at the block's predictors) before each commit.
        fill: the prompt has mask tokens; replace these and write nothing behind the last one.

    Returns:
        A rollout of one row.
    """
    size, mask = model.geometry.block_size, tokens.mask_token_id
    gaps = [i for i, token in enumerate(prompt) if token == mask] if fill else []
    first, cap = (gaps[0], gaps[-1] + 1) if fill else (len(prompt), len(prompt) + settings.max_new_tokens)
    width = -(-cap // size) * size
    ids = [*prompt, *[mask] * width][:width]
    steps = [NEVER if token == mask and i >= first else -1 for i, token in enumerate(ids)]
    confidences = [0.0] * width
    stops = () if fill else tokens.stop_token_ids
    rule, numbers = _rule(settings)
    forwards, length, end = 0, None, 0
    while length is None:
        start = steps.index(NEVER) // size * size
        end = start + size
        seen: list[Proposals] = []
        while length is None and NEVER in steps[start:end]:
            logits = _block_logits(model, ids[:end], start)
            if on_step is not None:
                on_step(start, len(seen), logits)
            seen.append(_proposals(logits, ids, [0 <= step < NEVER for step in steps], seed, start, seen, settings))
            masked = torch.tensor([[fixed == NEVER for fixed in steps[start:end]]])
            for offset in _chosen(rule, numbers, seen[-1], masked, stops if settings.hold_end else ()):
                ids[start + offset] = int(seen[-1].token[0, offset])
                steps[start + offset] = len(seen) - 1
                confidences[start + offset] = float(seen[-1].confidence[0, offset])
            forwards += 1
            length = _length(ids[:end], steps, first, cap, stops)
    return Rollout(
        input_ids=torch.tensor([ids[:end]]),
        prompt_length=torch.tensor([first]),
        length=torch.tensor([length]),
        end=torch.tensor([end]),
        commit_step=torch.tensor([steps[:end]], dtype=torch.int16),
        stopped=torch.tensor([length is not None and ids[length - 1] in stops]),
        forwards=torch.tensor([forwards]),
        confidence=torch.tensor([confidences[:end]]),
    )


def _proposals(
    logits: torch.Tensor,
    ids: Sequence[int],
    written: Sequence[bool],
    seed: int,
    start: int,
    before: Sequence[Proposals],
    settings: GenerationSettings,
) -> Proposals:
    """What the model proposes for the block, [1, S], after the proposals of its steps `before`.

    `written`: which of `ids` the response has.
    """
    position = torch.arange(start, start + len(logits))[None]
    chance = uniform(torch.tensor([[seed]]), position, torch.tensor([[len(before)]]))
    has = present(torch.tensor([ids]), logits.shape[-1])[:, None]
    counts = counted(torch.tensor([ids]), logits.shape[-1], torch.tensor([written]))[:, None]
    seen = propose(logits[None], _controls(settings, logits.shape[-1]), partial(draw, chance=chance), has, counts)
    drifts = [torch.full_like(seen.confidence, torch.inf)] * history(settings.decoding.model_dump())
    drifts += [moved(now.log_probability, last.log_probability) for last, now in pairwise([*before, seen])]
    return replace(seen, drift=torch.stack(drifts, -1)) if drifts else seen


def _controls(settings: GenerationSettings, vocabulary: int) -> Controls:
    """All of them, for one row, used or not."""
    bias = torch.zeros(1, vocabulary)
    for token, value in settings.logit_bias.items():
        bias[0, token] = value
    return Controls(
        temperature=torch.tensor([settings.temperature]),
        top_k=torch.tensor([settings.top_k]),
        top_k_limit=max(1, settings.top_k),
        top_p=torch.tensor([settings.top_p]),
        min_p=torch.tensor([settings.min_p]),
        repetition_penalty=torch.tensor([settings.repetition_penalty]),
        presence_penalty=torch.tensor([settings.presence_penalty]),
        frequency_penalty=torch.tensor([settings.frequency_penalty]),
        bias=bias,
    )


def _rule(settings: GenerationSettings) -> tuple[CommitRule, dict[str, float]]:
    """The commit rule, and its numbers by name."""
    numbers = settings.decoding.model_dump()
    rule, _ = RULES[numbers.pop("kind")]
    return rule, numbers


def _chosen(
    rule: CommitRule, numbers: dict[str, float], seen: Proposals, masked: torch.Tensor, held: Sequence[int]
) -> list[int]:
    """Offsets that are committed: by the rule, with no token of `held` behind a mask; the first one if none is left."""
    open_ = masked[0].nonzero()[:, 0].tolist()
    early = [i for i in open_[1:] if int(seen.token[0, i]) in held]
    confidence = seen.confidence.clone()
    confidence[0, early] = 0.0
    committed = rule(replace(seen, confidence=confidence), masked, **numbers)[0].nonzero()[:, 0].tolist()
    return [i for i in committed if i not in early] or open_[:1]


def _length(ids: list[int], steps: list[int], begin: int, cap: int, stops: Sequence[int]) -> int | None:
    """Length of the finished text: up to a stop token or the cap, with no mask before it; None while there is none."""
    for i in range(begin, min(len(ids), cap)):
        if steps[i] == NEVER:
            return None
        if ids[i] in stops:
            return i + 1
    return cap if len(ids) >= cap else None


def _block_logits(model: BlockDiffusionModel, ids: list[int], start: int) -> torch.Tensor:
    """[S, V] logits that predict the block that begins at `start`, the last of `ids`."""
    position = torch.arange(len(ids))[None]
    stream = (position >= start).long() + CLEAN
    hidden = model.hidden(torch.tensor([ids]), Attention.within(model.geometry, position, stream))
    shift = 1 if model.geometry.prediction == "shifted" else 0
    predictor = (torch.arange(start, len(ids)) - shift).clamp(min=0)  # nothing predicts token 0, which is never masked
    return model.logits(hidden[0, predictor])
