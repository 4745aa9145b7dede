"""Who writes the responses that are trained on: the student itself, the teacher, or nobody (given text)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import pad

from opdlm.config import GenerationSettings, SequentialDecoding
from opdlm.core.types import NEVER, Geometry, Rollout
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine

AUTOREGRESSIVE = Geometry(block_size=1, prediction="shifted", context="causal")
"""With blocks of one token, predicted by the token before, the diffusion sampler is the ARLM's own decoding."""


def written_by_student(
    student: BlockDiffusionModel,
    tokens: SpecialTokens,
    settings: GenerationSettings,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    batch_size: int,
) -> tuple[Rollout, int]:
    """On-policy text with its commit rounds, by the sampler that serves users. Also: query tokens computed."""
    engine = Engine(student, tokens, settings, batch_size)
    return engine.generate(prompts, seeds), engine.query_tokens


def written_by_teacher(
    teacher: BlockDiffusionModel,
    tokens: SpecialTokens,
    settings: GenerationSettings,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    batch_size: int,
    block_size: int,
) -> tuple[Rollout, int]:
    """Off-policy text, token by token. It has no states of its own: only random masks fit it."""
    ar_settings = settings.model_copy(update={"decoding": SequentialDecoding()})
    engine = Engine(teacher.at(AUTOREGRESSIVE), tokens, ar_settings, batch_size)
    return whole_blocks(engine.generate(prompts, seeds), tokens.mask_token_id, block_size), engine.query_tokens


def given(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    tokens: SpecialTokens,
    block_size: int,
    cap: int,
) -> Rollout:
    """Ground-truth responses as a rollout (for `sft`); each is cut at `cap` tokens."""
    texts = [[*p, *r[:cap]] for p, r in zip(prompts, responses, strict=True)]
    width = max(map(len, texts))
    lengths = torch.tensor([len(t) for t in texts])
    prompt_lengths = torch.tensor([len(p) for p in prompts])
    columns = torch.arange(width)
    in_response = (columns >= prompt_lengths[:, None]) & (columns < lengths[:, None])
    rounds = torch.where(in_response, 0, torch.where(columns < prompt_lengths[:, None], -1, NEVER))
    rollout = Rollout(
        input_ids=torch.tensor([t + [tokens.pad_token_id] * (width - len(t)) for t in texts]),
        prompt_length=prompt_lengths,
        length=lengths,
        end=lengths,
        commit_round=rounds.short(),
        stopped=torch.tensor([t[-1] in tokens.stop_token_ids for t in texts]),
        forwards=torch.zeros(len(texts), dtype=torch.int64),
    )
    return whole_blocks(rollout, tokens.mask_token_id, block_size)


def whole_blocks(rollout: Rollout, mask_token_id: int, block_size: int) -> Rollout:
    """The same rows, each continued with unfilled positions to the end of its last block."""
    end = -(-rollout.length // block_size) * block_size
    extra = max(0, int(end.max()) - rollout.input_ids.shape[1])
    input_ids = pad(rollout.input_ids, (0, extra), value=mask_token_id)
    rounds = pad(rollout.commit_round, (0, extra), value=NEVER)
    behind = torch.arange(input_ids.shape[1], device=end.device) >= rollout.length[:, None]
    return replace(
        rollout,
        input_ids=input_ids.masked_fill(behind, mask_token_id),
        commit_round=rounds.masked_fill(behind, NEVER),
        end=end,
    )
