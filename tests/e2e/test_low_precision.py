"""`--precision bfloat16`, the default on a GPU, with every way to convert; on the CPU, whose autocast casts alike."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from opdlm.distill.api import convert
from runs import PROMPTS, SETTINGS, metrics, small_ar_model

WITH_PEFT = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
WAYS: dict[str, dict[str, Any]] = {
    "opd": {},
    "all-states": {"states": "all"},
    "clean-text-term": {"clean_weight": 1.0},
    "paper": {"recipe": "paper-small"},
    "sft": {"method": "sft"},
    "offpolicy_kd": {"method": "offpolicy_kd"},
    "onpolicy_text": {"method": "onpolicy_text"},
    "lossless-mask": {"recipe": "lossless", "window": 3, "window_form": "mask", "lora_rank": 4},
    "lossless-noise": {"recipe": "lossless", "window": 3, "window_form": "noise", "lora_rank": 4},
    "lossless-with-drafts": {
        "recipe": "lossless",
        "window": 3,
        "window_form": "noise",
        "lora_rank": 4,
        "rollout_decoding": "verified",
    },
    "recomputed": {"gradient_checkpointing": True},
    "low-bit-teacher": {"recipe": "standard", "teacher_precision": "bfloat16"},
}


@pytest.mark.parametrize("way", [*WAYS, pytest.param("lora", marks=WITH_PEFT)])
def test_every_way_to_convert_works_in_bfloat16(way: str, tmp_path: Path) -> None:
    """Else a conversion that the CPU's tests know in float32 ends with a type error on the first GPU."""
    settings = SETTINGS | {"rollouts": 2, "eval_every": 1, "eval_count": 2} | WAYS.get(way, {"lora_rank": 2})
    base = small_ar_model(tmp_path)
    first = {}
    for precision in ("float32", "bfloat16"):
        convert(base, PROMPTS, tmp_path / precision, precision=precision, **settings)
        first[precision] = metrics(tmp_path / precision)[0]["loss"]
    assert first["bfloat16"] != first["float32"], "bfloat16 was not on"
    # The texts differ, too: a random model has near ties.
    assert first["bfloat16"] == pytest.approx(first["float32"], rel=0.2)
