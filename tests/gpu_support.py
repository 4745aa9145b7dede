"""Models for the tests under `tests/gpu`: on a GPU large enough that its kernels do real work, elsewhere tiny.

OPDLM_TEST_DEVICE names the device; default: the GPU if there is one. On a CPU the same tests run, so that they are not
typed for the first time on a rented machine; what only a GPU can show is skipped with its reason (marker `gpu`).
"""

import os
from typing import Any

import torch

from opdlm.core.types import Geometry
from opdlm.models.block_diffusion import BlockDiffusionModel
from support import MASK, tiny_model

DEVICE = torch.device(os.environ.get("OPDLM_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))
LARGE = DEVICE.type == "cuda"
SHAPE: dict[str, Any] = (
    {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8, "head_dim": 64}
    if LARGE
    else {"num_hidden_layers": 2}
)
"""Changes to the config of a tiny Qwen3."""


def model_on(device: torch.device = DEVICE, geometry: Geometry = Geometry(4), **changes: Any) -> BlockDiffusionModel:  # noqa: B008
    """A random Qwen3 in float32; the same weights on every device."""
    decoder = tiny_model("qwen3", **{**SHAPE, "initializer_range": 0.1 if LARGE else 0.35, **changes})
    return BlockDiffusionModel(decoder.to(device), geometry, MASK)  # type: ignore[arg-type]


def prompts(count: int = 24 if LARGE else 4) -> list[list[int]]:
    """Random ids, 1 to 9 of them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(6, MASK, (1 + row % 9,), generator=generator).tolist() for row in range(count)]
