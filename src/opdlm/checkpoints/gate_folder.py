"""A lossless model as a folder: the AR model's own files, unchanged, and its gate beside them; or the gate alone.

`gate.safetensors` has the gate's weights by layer, the geometry entry in config.json its form, window and rank. A gate
alone also says which base it belongs to, by name or absolute path and by the hash of its weights.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from opdlm.errors import CheckpointError
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import GATE_FILE, Gate
from opdlm.records.record import Part


class Drafting(Part):
    """What the geometry entry says of a gate. `base`: name or path of the model, where the gate is alone."""

    form: Literal["mask", "noise"]
    window: int = Field(ge=1, le=64)
    rank: int = Field(ge=1)
    base: str | None = None


def save_gate(gate: Gate, folder: Path) -> None:
    """Writes gate.safetensors."""
    save_file(gate.tensors(), folder / GATE_FILE, metadata={"format": "pt"})


def base_of(place: str | Path, about: Drafting) -> str:
    """Name or path of the base of a gate that stands alone; a relative path is one from its folder `place`, which may
    have moved along with the base."""
    beside = Path(place) / str(about.base)
    return str(beside.resolve()) if about.base and beside.exists() else str(about.base)


def read_gate(place: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of the folder's or hub name's gate. Raises CheckpointError if they are damaged."""
    try:
        return load_file(str(cached_file(str(place), GATE_FILE)))
    except (OSError, SafetensorError) as error:
        raise _damaged(place, error) from error


def with_gate(base: PreTrainedModel, place: str | Path, about: Drafting) -> DraftingModel:
    """The base with the gate of the folder or hub name `place`. Raises CheckpointError if that is damaged."""
    gate = Gate(base, about.rank, about.form, about.window)
    try:
        gate.load_tensors(read_gate(place))
    except ValueError as error:
        raise _damaged(place, error) from error
    # On a CPU a bfloat16 product of so few tokens takes several times as long as one in float32.
    dtype = torch.float32 if base.device.type == "cpu" else base.dtype
    return DraftingModel(base, gate.to(base.device, dtype))


def _damaged(place: str | Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0]
    return CheckpointError(f"{GATE_FILE} of {place} cannot be used ({reason}); save the model again")
