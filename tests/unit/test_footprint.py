"""Memory is estimated from what a pass really keeps: it grows as the shapes do, and recomputation saves it."""

from dataclasses import replace

import pytest

from opdlm.config import DistillSettings
from opdlm.distill.footprint import Shape, estimate
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
