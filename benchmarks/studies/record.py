"""The file that a run leaves: what it was, where and with what it ran, and what came of it."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import torch
import transformers


@dataclass(frozen=True)
class Effort:
    """How much is spent on an arm.

    Attributes:
        scale: factor of all numbers of rollouts.
        per_family: questions of each family in the final examination; a fifth of that on the way.
    """

    scale: float = 1.0
    per_family: int = 250


def path_of(folder: Path, name: str, seed: int) -> Path:
    """Where the result of an arm stands."""
    return folder / f"{name}-seed{seed}.json"


def is_done(folder: Path, definition: dict[str, Any]) -> bool:
    """Whether the folder holds the result of this very definition."""
    path = path_of(folder, definition["arm"], definition["seed"])
    return path.exists() and json.loads(path.read_text("utf-8"))["definition"] == definition


def circumstances() -> dict[str, Any]:
    """Taken before the run: the code may change while it lasts."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "commit": measuring.commit(),
        "hardware": measuring.hardware(),
        "versions": {**versions, "python": platform.python_version()},
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Complete or not at all: a file says that the arm is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    draft.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    draft.rename(path)
