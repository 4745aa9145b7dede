"""Memory is estimated from what a pass really keeps: it grows as the shapes do, and recomputation saves it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lossless import ENDLESS, drafting
from opdlm.config import DistillSettings
from opdlm.config.decoding import VerifiedDecoding
from opdlm.core.windows import WindowChoice, select_windows
from opdlm.distill.footprint import Shape, _kept_bytes, estimate, estimate_lossless
from opdlm.distill.pair import WindowPass
from opdlm.distill.rollout import given
from opdlm.distill.teacher import Teacher
from rollouts import TOKENS, fresh_student

SHAPE = Shape(rows=2, prompt_tokens=16, response_tokens=32, rollout_rows=4)


def activations(shape: Shape, **settings: bool) -> int:
    return estimate(fresh_student(), TOKENS, DistillSettings(**settings), 4, shape)["activation_bytes"]  # type: ignore[arg-type]


def test_activations_follow_the_shape() -> None:
    """Else the estimate would hold for the measured shape alone, which nobody trains with."""
    one = activations(SHAPE)
    assert activations(replace(SHAPE, rows=6)) == pytest.approx(3 * one, rel=0.01)
    longer = activations(replace(SHAPE, prompt_tokens=64, response_tokens=128))  # four times the tokens
    assert 3.5 * one < longer < 8 * one, "at least in proportion, and less than the square"


def test_recomputed_activations_cost_less_and_the_model_is_as_it_was() -> None:
    """Else `doctor` would not know what --gradient-checkpointing saves, or would leave it switched on."""
    assert activations(SHAPE, gradient_checkpointing=True) < 0.6 * activations(SHAPE)
    model = fresh_student()
    estimate(model, TOKENS, DistillSettings(gradient_checkpointing=True), 4, SHAPE)
    assert not model.training
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_parts_add_up() -> None:
    """Else a part would be left out of the sum that decides whether a model fits."""
    found = estimate(fresh_student(), TOKENS, DistillSettings(), 4, SHAPE)
    weights = 4 * sum(p.numel() for p in fresh_student().parameters())
    assert found["weights_bytes"] == weights
    assert found["training_bytes"] >= found["base_bytes"] + 5 * weights + found["activation_bytes"]
    assert found["checkpoint_bytes"] == 3 * weights, "weights, and two moments of AdamW"
    assert found["lora_checkpoint_bytes"] < found["checkpoint_bytes"]


def test_a_lossless_conversion_keeps_activations_of_windows_alone() -> None:
    """Else its estimate would grow with the prompt as full training's does, or count the weights more than once."""

    def of(shape: Shape, window: int = 3) -> dict[str, Any]:
        settings = DistillSettings(method="lossless", anchors="all", lora_rank=4, rollout_decoding=VerifiedDecoding())
        return estimate_lossless(drafting(window=window), ENDLESS, settings, shape)

    one, model = of(SHAPE), drafting()
    assert one["weights_bytes"] == 4 * sum(p.numel() for p in model.model.parameters())
    assert one["gate_bytes"] == 4 * sum(p.numel() for p in model.gate.parameters())
    least = one["base_bytes"] + one["weights_bytes"] + 4 * one["gate_bytes"] + one["activation_bytes"]
    assert least < one["training_bytes"]
    rows = of(replace(SHAPE, rows=6))["activation_bytes"]
    assert rows == pytest.approx(3 * one["activation_bytes"], rel=0.01)
    assert of(replace(SHAPE, prompt_tokens=64))["activation_bytes"] < 2 * one["activation_bytes"]
    assert of(SHAPE, window=6)["activation_bytes"] > 1.8 * one["activation_bytes"]


def test_the_estimate_extends_what_is_measured() -> None:
    """Else longer texts than the measured ones would need more, or less, than was said."""
    settings = DistillSettings(method="lossless", anchors="all", lora_rank=4, rollout_decoding=VerifiedDecoding())
    model = drafting()
    text = given([[1] * 16] * 2, [[1] * 32] * 2, ENDLESS, 1, 32)
    windows = select_windows(text, WindowChoice(3, "all"), torch.zeros(2, dtype=torch.int64))
    clean = Teacher(model).clean_pass(text)
    real = _kept_bytes(model, lambda: WindowPass(model).hidden(windows, clean))
    assert estimate_lossless(model, ENDLESS, settings, SHAPE)["activation_bytes"] == pytest.approx(real, rel=0.1)
