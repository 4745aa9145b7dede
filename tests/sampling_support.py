"""Settings that reach every rule and control of the sampler, and how two of its records are compared."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.config import GenerationSettings
from opdlm.core.types import NEVER, Rollout
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine, Step
from opdlm.sampling.requests import continuations, fillings
from support import MASK, assert_close

NEVER_STOPS = SpecialTokens(MASK, 0, ())
BIAS = {7: 1.5, 30: -4.0, 41: 2.5}
CHOICES: list[dict[str, Any]] = [
    {"decoding": "static"},
    {"decoding": "static:2", "temperature": 1, "top_p": 0.95},
    {"decoding": "sequential:3", "temperature": 1, "min_p": 0.05},
    {"decoding": "dynamic:0.2", "repetition_penalty": 1.5},
    {"decoding": "dynamic:0.1", "temperature": 1, "top_p": 0.95},
    {"decoding": "factor:2", "temperature": 1, "logit_bias": BIAS},
    {"decoding": "prefix:0.05", "temperature": 1, "logit_bias": BIAS},
    {"decoding": "entropy:3", "temperature": 0.8, "repetition_penalty": 0.8},
    {"decoding": {"kind": "entropy", "bound": 3, "by_confidence": True}, "logit_bias": BIAS, "repetition_penalty": 2},
    {"decoding": {"kind": "klass", "threshold": 0.1, "drift": 1.0, "history": 1}},
    {
        "decoding": {"kind": "klass", "threshold": 0.05, "drift": 3.0, "history": 2},
        "temperature": 1,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "logit_bias": BIAS,
    },
    {"decoding": "dynamic:0.1", "temperature": 1, "hold_end": True},
    {"decoding": "entropy:3", "temperature": 1, "hold_end": True, "logit_bias": {2: 4.0, 3: 4.0}},
    {"decoding": "dynamic:0.2", "presence_penalty": 2.0, "frequency_penalty": 0.5},
    {"decoding": "dynamic:0.1", "temperature": 1, "frequency_penalty": -0.5, "repetition_penalty": 1.3},
]
"""Every rule, and every control of the draw, alone and together."""


def settings_of(choice: dict[str, Any], **changes: Any) -> GenerationSettings:
    return GenerationSettings.model_validate(choice | changes)


def assert_same_row(rollout: Rollout, row: int, expected: Rollout) -> None:
    """Token for token: ids, steps, lengths, forwards and confidences of `row` and of the one row of `expected`."""
    end = int(expected.end)
    assert int(rollout.end[row]) == end
    assert rollout.input_ids[row, :end].tolist() == expected.input_ids[0, :end].tolist()
    assert rollout.commit_step[row, :end].tolist() == expected.commit_step[0, :end].tolist()
    for name in ("prompt_length", "length", "stopped", "forwards"):
        assert getattr(rollout, name)[row] == getattr(expected, name)[0], name
    assert (rollout.commit_step[row, end:] == NEVER).all()
    assert rollout.confidence is not None
    assert expected.confidence is not None
    assert_close(rollout.confidence[row, :end], expected.confidence[0, :end])
    written = (rollout.commit_step[row] >= 0) & (rollout.commit_step[row] < NEVER)
    assert (rollout.confidence[row] > 0).tolist() == written.tolist(), "known tokens and masks have none"


@contextmanager
def forwards_of(model: BlockDiffusionModel) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens a row) of every forward pass meanwhile."""
    shapes: list[tuple[int, int]] = []

    def note(_module: object, _inputs: object, arguments: dict[str, torch.Tensor]) -> None:
        shapes.append(tuple(arguments["input_ids"].shape))  # type: ignore[arg-type]

    handle = model.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    yield shapes
    handle.remove()


def generated(
    model: BlockDiffusionModel,
    tokens: SpecialTokens,
    settings: GenerationSettings,
    prompts: Sequence[Sequence[int]],
    batch_size: int = 32,
    seeds: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Rollout:
    """The engine's responses to prompts, all with the same settings."""
    return Engine(model, tokens, batch_size, tokenizer).write(continuations(prompts, settings, seeds))


def filled(
    model: BlockDiffusionModel,
    tokens: SpecialTokens,
    settings: GenerationSettings,
    texts: Sequence[Sequence[int]],
    batch_size: int = 32,
    observer: Callable[[Step], None] | None = None,
) -> Rollout:
    """The engine's texts with their mask tokens filled, all with the same settings."""
    requests = fillings(texts, settings, tokens.mask_token_id, model.geometry.block_size)
    return Engine(model, tokens, batch_size, observer=observer).write(requests)
