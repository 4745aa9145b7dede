"""The engine writes on the GPU what it writes on the CPU, up to ties, which are counted.

Uniform numbers are the same on both (`core/noise.py`); matrix products are not, in their last bits. A text may differ
only behind a step whose logits are the same up to rounding on both: a tie. On a machine without a GPU both sides are
the CPU, so that nothing is shown but that the tests work.
"""

from typing import Any

import pytest
import torch

from gpu_support import DEVICE, LARGE, SHAPE, model_on, prompts
from lossless import ENDLESS, drafting, responses
from opdlm.config import GenerationSettings
from opdlm.core.types import NEVER, Rollout
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations
from rollouts import Visits, written

ROUNDING = 1e-3 if LARGE else 1e-4  # of logits, float32
TOKENS = 64 if LARGE else 18
CPU = torch.device("cpu")


def written_on(device: torch.device, **settings: Any) -> tuple[Rollout, Visits]:
    rollout, visits = written(model_on(device), prompts(), batch_size=8, max_new_tokens=TOKENS, **settings)
    return rollout.to(CPU), {key: logits.cpu() for key, logits in visits.items()}


def is_tie(row: int, ours: tuple[Rollout, Visits], expected: tuple[Rollout, Visits]) -> bool:
    """Whether the two texts of a row part; up to there they must have seen the same logits, step by step."""
    for key in sorted(key for key in expected[1] if key[0] == row):
        assert key in ours[1], f"a step that the CPU took is missing: {key}"
        torch.testing.assert_close(ours[1][key], expected[1][key], atol=ROUNDING, rtol=ROUNDING)
        if committed(ours[0], key) != committed(expected[0], key):
            return True
    assert torch.equal(ours[0].input_ids[row], expected[0].input_ids[row])
    return False


def committed(rollout: Rollout, key: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(position, token) of what the step committed."""
    row, start, step = key
    block = slice(start, start + 4)
    chosen = (rollout.commit_step[row, block] == step) & (rollout.commit_step[row, block] < NEVER)
    positions = chosen.nonzero().flatten().tolist()
    return [(start + i, int(rollout.input_ids[row, start + i])) for i in positions]


@pytest.mark.parametrize("decoding", ["static", "sequential:2", "dynamic:0.2", "prefix:0.05", "entropy:3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_those_of_the_cpu(decoding: str, temperature: float, record_property: Any) -> None:
    """Else rollouts, evaluation and users would get another model's text on a GPU, and no test would know."""
    chosen = {"decoding": decoding, "temperature": temperature}
    ours, expected = written_on(DEVICE, **chosen), written_on(CPU, **chosen)
    rows = len(expected[0].length)
    ties = sum(is_tie(row, ours, expected) for row in range(rows))
    record_property("ties", f"{ties} of {rows}")
    assert ties <= rows // 4


def text_of(model: BlockDiffusionModel, decoding: str) -> list[list[int]]:
    settings = GenerationSettings.model_validate({"decoding": decoding, "max_new_tokens": TOKENS})
    return responses(Engine(model, ENDLESS, 8).write(continuations(prompts(), settings)))


def drafting_on(device: torch.device) -> DraftingModel:
    made = drafting("qwen3", window=3, **SHAPE)
    return DraftingModel(made.model.to(device), made.gate.to(device))  # type: ignore[arg-type]


@torch.no_grad()
def test_verified_text_is_the_original_on_the_cpu(record_property: Any) -> None:
    """Else "lossless" would not hold on a GPU: drafts that are accepted must be the AR model's own tokens."""
    original = drafting_on(CPU)
    expected, found = text_of(original, "sequential"), text_of(drafting_on(DEVICE), "verified")
    ties = 0
    for prompt, text, other in zip(prompts(), expected, found, strict=True):
        if text == other:
            continue
        at = next(i for i, (a, b) in enumerate(zip(text, other, strict=True)) if a != b)
        hidden = original.causal_hidden(torch.tensor([[*prompt, *text[:at]]]))
        logits = original.logits(hidden[0, -1])
        assert abs(float(logits[text[at]] - logits[other[at]])) <= ROUNDING, "another token, and no tie"
        ties += 1
    record_property("ties", f"{ties} of {len(expected)}")
    assert ties <= len(expected) // 4
