"""What an arm is, and its settings for a token budget."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("arms.toml")


@dataclass(frozen=True)
class Arm:
    """One way to convert. The fields stand in arms.toml."""

    name: str
    about: str
    decoding: str
    settings: Mapping[str, Any]
    tokens_per_response: int
    responses: str = "written"
    prompts: str = "given"

    @property
    def lossless(self) -> bool:
        return self.settings["recipe"] == "lossless"


def load_arms() -> dict[str, Arm]:
    """By name."""
    content = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    common = content["common"]
    return {
        name: Arm(
            name=name,
            **{
                **{key: value for key, value in common.items() if key != "settings"},
                **values,
                "settings": {**common["settings"], **values["settings"]},
            },
        )
        for name, values in content["arms"].items()
    }


def run_name(arm: str, tokens: int, seed: int) -> str:
    """Names the folder of a run and its result."""
    return f"{arm}-{tokens}" + (f"-seed{seed}" if seed else "")
