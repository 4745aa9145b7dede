"""Drafting models for tests: tiny random decoders with a gate that is not the identity."""

import torch

from opdlm.core.types import Rollout
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import Form, Gate
from opdlm.models.tokens import SpecialTokens
from support import tiny_model

ENDLESS = SpecialTokens(0, 0, ())


def drafting(
    architecture: str = "llama", form: Form = "mask", window: int = 3, seed: int = 0, change: float = 0.05, **changes
) -> DraftingModel:
    """A tiny model whose gate changes what its windows say (`change` 0: a new gate, the identity)."""
    model = tiny_model(architecture, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = Gate(model, 4, form, window)
        for parameter in gate.parameters():
            parameter.data += change * torch.randn_like(parameter)
    return DraftingModel(model, gate)


def responses(rollout: Rollout) -> list[list[int]]:
    """The written ids of each row."""
    ends = zip(rollout.prompt_length.tolist(), rollout.length.tolist(), strict=True)
    return [rollout.input_ids[row, begin:end].tolist() for row, (begin, end) in enumerate(ends)]
