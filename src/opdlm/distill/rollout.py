"""Who writes the responses that are trained on: the student itself, the teacher, or nobody (given text)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.nn.functional import pad

from opdlm.config import SequentialDecoding
from opdlm.core.layout import AUTOREGRESSIVE
from opdlm.core.types import NEVER, Rollout
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.request import Request


@dataclass(frozen=True)
class Written:
    """A rollout, and the query tokens that a model computed for it (0: nobody wrote, the text was given).

    `on_policy`: the student wrote it, so that its commit steps are states that the student visited.
    """

    rollout: Rollout
    query_tokens: int
    on_policy: bool = False


class Worker(Protocol):
    """Writes the student's texts elsewhere than in this process."""

    def write(self, requests: Sequence[Request], device: torch.device) -> Written:
        """A text for each request, by the student as it is now; the tensors on `device`."""
        ...


def written_by_student(
    student: BlockDiffusionModel, tokens: SpecialTokens, requests: Sequence[Request], batch_size: int
) -> Written:
    """On-policy text with its commit steps, by the sampler that serves users."""
    engine = Engine(student, tokens, batch_size)
    return Written(engine.write(requests), engine.query_tokens, on_policy=True)


def written_by_teacher(
    teacher: BlockDiffusionModel, tokens: SpecialTokens, requests: Sequence[Request], batch_size: int, block_size: int
) -> Written:
    """Off-policy text, token by token. It has no states of its own: only random masks fit it."""
    engine = Engine(teacher.at(AUTOREGRESSIVE), tokens, batch_size)
    one_by_one = SequentialDecoding().model_dump()
    rollout = engine.write([replace(request, decoding=one_by_one) for request in requests])
    return Written(whole_blocks(rollout, tokens.mask_token_id, block_size), engine.query_tokens)


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
    steps = torch.where(in_response, 0, torch.where(columns < prompt_lengths[:, None], -1, NEVER))
    rollout = Rollout(
        input_ids=torch.tensor([t + [tokens.pad_token_id] * (width - len(t)) for t in texts]),
        prompt_length=prompt_lengths,
        length=lengths,
        end=lengths,
        commit_step=steps.short(),
        stopped=torch.tensor([t[-1] in tokens.stop_token_ids for t in texts]),
        forwards=torch.zeros(len(texts), dtype=torch.int64),
    )
    return whole_blocks(rollout, tokens.mask_token_id, block_size)


def whole_blocks(rollout: Rollout, mask_token_id: int, block_size: int) -> Rollout:
    """The same rows, each continued with unfilled positions to the end of its last block."""
    end = -(-rollout.length // block_size) * block_size
    extra = max(0, int(end.max()) - rollout.input_ids.shape[1])
    input_ids = pad(rollout.input_ids, (0, extra), value=mask_token_id)
    steps = pad(rollout.commit_step, (0, extra), value=NEVER)
    behind = torch.arange(input_ids.shape[1], device=end.device) >= rollout.length[:, None]
    return replace(
        rollout,
        input_ids=input_ids.masked_fill(behind, mask_token_id),
        commit_step=steps.masked_fill(behind, NEVER),
        end=end,
    )
