"""Training on the device: bfloat16 beside float32, and a run that goes on after it was cut."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_support import DEVICE, model_on
from opdlm.config import DistillSettings
from opdlm.core.types import Geometry
from opdlm.distill.api import convert, resume
from opdlm.distill.losses import divergence_loss, log_divergence
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.records.metrics import StepMetrics
from rollouts import TOKENS, random_prompts, states_of, written
from runs import PROMPTS, SETTINGS, metrics, small_ar_model, weights


def trained(low: bool) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a training pass on the device."""
    model = model_on(geometry=Geometry(4), initializer_range=0.1)
    rollout, _ = written(model_on(torch.device("cpu")), random_prompts())
    rollout = rollout.to(DEVICE)
    seeds = torch.arange(len(rollout.length), device=DEVICE)
    states = states_of(rollout, model.geometry, "one_per_block", seeds)
    pair = Pair.of(model, Teacher(model_on(seed=1, initializer_range=0.1)), TOKENS)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=low):
        targets = pair.teacher.targets(rollout)
        total = divergence_loss(pair, log_divergence(DistillSettings()), states, rollout, targets)
        total.total.backward()
    gradients = [p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None]
    return float(total.total.detach()), torch.cat(gradients)


def test_bfloat16_is_float32_up_to_its_rounding() -> None:
    """Else the default precision on a GPU would train towards something else than the float32 that all tests use."""
    (loss, gradient), (expected_loss, expected) = trained(low=True), trained(low=False)
    assert loss != expected_loss, "bfloat16 was not on"
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert float(torch.cosine_similarity(gradient, expected, 0)) > 0.99


class PowerCut(Exception):  # noqa: N818
    """The machine goes off."""


def cut(step: StepMetrics) -> None:
    if step.rollout == 3:
        raise PowerCut


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_rank": 2},
        {"gradient_checkpointing": True, "precision": "bfloat16"},
        {"recipe": "lossless", "window": 3, "window_form": "noise", "lora_rank": 2, "precision": "bfloat16"},
        {"recipe": "lossless", "window": 3, "window_form": "mask", "lora_rank": 2, "precision": "bfloat16"},
        pytest.param(
            {"optimiser": {**SETTINGS["optimiser"], "moments": "offload"}},
            marks=pytest.mark.skipif(DEVICE.type != "cuda", reason="moments are offloaded from a GPU alone"),
        ),
    ],
)
def test_a_resumed_run_goes_on_as_if_never_cut(settings: dict[str, Any], tmp_path: Path) -> None:
    """Else state would come back to a wrong device or type. On a CPU bit for bit, on a GPU up to the order of sums."""
    chosen = SETTINGS | {"device": DEVICE.type} | settings
    ar_model = small_ar_model(tmp_path)
    convert(ar_model, PROMPTS, tmp_path / "whole", **chosen)
    with pytest.raises(PowerCut):
        convert(ar_model, PROMPTS, tmp_path / "cut", on_step=cut, **chosen)
    resume(tmp_path / "cut")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    if DEVICE.type == "cpu":
        assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        return
    for one, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "cut"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)
        assert one["updates"] == other["updates"]
    for name in expected:
        torch.testing.assert_close(expected[name], found[name], atol=5e-3, rtol=0.05)
