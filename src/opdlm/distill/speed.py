"""How fast a conversion is on this machine: some training steps of a realistic shape, timed."""

import copy
from contextlib import suppress
from statistics import median
from time import perf_counter
from typing import Any

import torch

from opdlm.config import DistillSettings, LengthRamp, StaticDecoding
from opdlm.distill.loop import Trainer
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.records.metrics import StepMetrics

ENOUGH_S = 20.0
"""No further step is begun after this many seconds, once two are counted: one alone would not say how sure it is."""
_MOST_STEPS = 4  # the first warms up and is not counted
_ROWS, _PROMPT, _RESPONSE = 4, 64, 48


def measure(model: BlockDiffusionModel, tokens: SpecialTokens, settings: DistillSettings) -> dict[str, Any]:
    """Response tokens per second of training steps, rollouts included; the model's weights change.

    No stop token ends a response here, and each denoising step commits one token: a student that has learnt to commit
    more at once is faster. Longer responses than the measured ones are slower in attention, larger batches faster.
    """
    original = copy.deepcopy(model.model).requires_grad_(False)
    teacher = Teacher(BlockDiffusionModel(original, model.geometry, model.mask_token_id))
    generator = torch.Generator().manual_seed(0)
    limit = model.max_length or _PROMPT + _RESPONSE
    size = settings.block_size
    response = max(size, min(_RESPONSE, limit // 2 // size * size))
    prompt = max(1, min(_PROMPT, limit - response - size))
    prompts = torch.randint(0, max(1, model.mask_token_id), (_ROWS, prompt), generator=generator).tolist()
    endless = SpecialTokens(tokens.mask_token_id, tokens.pad_token_id, ())
    few = {"prompts_per_rollout": _ROWS, "rows_per_update": _ROWS, "rollouts": _MOST_STEPS}
    how = {"rollout_decoding": StaticDecoding(), "warm_start_rollouts": 0, "method": "opd"}
    ramp = LengthRamp(start=response, end=response, rollouts=0)
    steps: list[StepMetrics] = []
    began = perf_counter()

    def note(metrics: StepMetrics) -> None:
        steps.append(metrics)
        if len(steps) > 2 and perf_counter() - began > ENOUGH_S:
            raise _EnoughError

    trainer = Trainer(
        pair=Pair.of(model, teacher, endless),
        prompts=prompts,
        settings=settings.model_copy(update={**few, **how, "response_length": ramp}),
        on_step=note,
    )
    with suppress(_EnoughError):
        trainer.train()
    counted = steps[1:]
    rates = [metrics.tokens_trained / sum(metrics.seconds.values()) for metrics in counted]
    shares = [metrics.seconds["rollout"] / sum(metrics.seconds.values()) for metrics in counted]
    return {
        "tokens_per_second": median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "steps": len(rates),
        "rollout_share": median(shares),
        "rows": _ROWS,
        "prompt_tokens": prompt,
        "response_tokens": response,
    }


class _EnoughError(Exception):
    """Enough has been measured."""
