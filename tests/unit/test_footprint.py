"""Memory is estimated from what a pass really keeps: it grows as the shapes do, and recomputation saves it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lossless import ENDLESS, drafting
from opdlm.config import DistillSettings
from opdlm.config.decoding import VerifiedDecoding
from opdlm.core.types import Geometry
from opdlm.core.windows import WindowChoice, select_windows
from opdlm.distill.footprint import Growth, Shape, _kept_bytes, estimate, estimate_lossless
from opdlm.distill.pair import WindowPass
from opdlm.distill.rollout import given
from opdlm.distill.teacher import Teacher
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.parts import linear_layers
from opdlm.models.shapes import without_weights
from rollouts import TOKENS, fresh_student
from support import VOCABULARY, tiny_model

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


@pytest.mark.parametrize("weights", ["bfloat16", "float32", "none, of bfloat16", "none, of float32"])
def test_frozen_weights_count_as_they_are_held(weights: str) -> None:
    """Else `doctor` would send users of an adapter to a GPU twice as large as needed, or too small."""
    config = tiny_model("llama").config
    config.dtype = torch.bfloat16 if weights.endswith("bfloat16") else torch.float32
    decoder = without_weights(config) if weights.startswith("none") else tiny_model("llama")
    if weights == "bfloat16":
        for parameter in decoder.parameters():
            parameter.data = parameter.data.bfloat16().float()
    model = BlockDiffusionModel(decoder, Geometry(4), VOCABULARY - 1)
    body = sum(layer.get_parameter("weight").numel() for layer in linear_layers(decoder).values())
    shape = replace(SHAPE, device="cuda")  # the CPU's estimate counts what this process holds, which changes

    def of(**changes: Any) -> dict[str, Any]:
        return estimate(model, TOKENS, DistillSettings(precision="bfloat16", **changes), 2, shape, Growth(1000.0, 0.0))

    found, plain = of(), of(sharding="full")
    saved = body if weights.endswith("bfloat16") else 0
    assert plain["teacher_bytes"] - found["teacher_bytes"] == 2 * saved
    assert plain["training_bytes"] - found["training_bytes"] == 2 * saved
    assert plain["lora_bytes"] - found["lora_bytes"] == 4 * saved, "the weights, and their copies"
    assert of(optimiser={"l2_sp": 0.1})["teacher_bytes"] == plain["teacher_bytes"]
    assert of(teacher_precision="bfloat16")["teacher_bytes"] < found["teacher_bytes"]


def test_a_lossless_conversion_counts_its_base_as_it_is_held() -> None:
    """Else the largest part of its memory would be told as twice what it is."""
    model, shape = drafting(), replace(SHAPE, device="cuda")
    for parameter in model.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    body = sum(layer.get_parameter("weight").numel() for layer in linear_layers(model.model).values())

    def of(precision: Any) -> dict[str, Any]:
        choices: Any = {"method": "lossless", "lora_rank": 4, "rollout_decoding": VerifiedDecoding()}
        return estimate_lossless(model, ENDLESS, DistillSettings(**choices, precision=precision), shape)

    plain, found = of("float32"), of("bfloat16")
    assert plain["weights_bytes"] - found["weights_bytes"] == 2 * body
    assert plain["training_bytes"] - found["training_bytes"] == 2 * body
    assert plain["decoding_bytes"] == found["decoding_bytes"]
