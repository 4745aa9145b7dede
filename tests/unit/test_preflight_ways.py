"""`opdlm doctor` says what each way to save memory comes to, and advises the first that fits."""

from pathlib import Path
from typing import Any

import pytest

from opdlm.distill import footprint, preflight
from support import tiny_model, tiny_tokenizer


def findings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    question = preflight.Question(str(folder), {}, lora_rank=2, prompt_tokens=16, response_tokens=32, speed=False)
    for part in preflight.examine(question):
        found |= part
    return found


def test_the_first_way_that_fits_is_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a user would be told to train an adapter where a smaller optimiser is enough, or what does not fit."""
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16}
    tiny_model("qwen3", **wide).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(footprint, "_base_bytes", lambda weights: 0)  # grows from one call to the next
    monkeypatch.setattr(footprint, "_LIBRARY", 0)  # larger than these models
    monkeypatch.setattr(preflight, "recipe_for", lambda parameters: "standard")
    found = findings(tmp_path)
    assert all(way["fits"] for way in found["ways"])
    assert "--rows-per-micro-batch" not in found["command"]
    own = [way for way in found["ways"] if "--lora-rank" not in way["flags"]]
    sizes = [way["bytes"] for way in own]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < found["memory"]["training_bytes"]
    flags = ["--rows-per-micro-batch", "--gradient-checkpointing", "--teacher-precision", "--optimiser.moments"]
    assert [list(way["flags"])[-1] for way in own] == flags
    for way, flag in zip(own, flags, strict=True):
        monkeypatch.setattr(preflight, "free_bytes", lambda device, free=way["bytes"]: free)
        found = findings(tmp_path)
        assert not found["training_fits"]
        assert found["command_fits"]
        assert [name for name in flags if name in found["command"]][-1] == flag
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 1)
    assert not findings(tmp_path)["command_fits"]
