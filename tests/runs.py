"""Conversions of a tiny model whose results are compared bit by bit."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rollouts import fresh_student
from support import tiny_tokenizer

PROMPTS = ["abc", "what is 2+2?", "one, two, ", "xyz!", "a=b"]
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "rollouts": 5,
    "prompts_per_rollout": 2,
    "rows_per_update": 1,
    "save_every_rollouts": 2,
    "response_length": {"start": 6, "end": 12, "rollouts": 3},
    "optimiser": {"learning_rate": 3e-3, "warmup_updates": 2},
}


def small_ar_model(folder: Path) -> str:
    """A random AR model, written to a folder of its own."""
    fresh_student().model.save_pretrained(folder / "ar_model")
    tiny_tokenizer().save_pretrained(folder / "ar_model")
    return str(folder / "ar_model")


def metrics(run: Path) -> list[dict[str, Any]]:
    """What was logged, but for clocks and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for clock in (line, line["total"]):
            clock.pop("seconds")
        line.pop("peak_memory_bytes")
    return lines


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Those of the finished model."""
    return load_file(run / "model" / "model.safetensors")
