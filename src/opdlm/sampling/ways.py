"""How the engine writes a request: by denoising blocks, or by drafts that are verified."""

from contextlib import suppress
from typing import Literal

from opdlm.errors import UsageError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.sampling.rules import CHECKED, RULES, VERIFIED

Way = Literal["denoised", "verified", "checked"]


def way_of(model: BlockDiffusionModel, kind: str) -> Way:
    """The way of a kind of decoding. UsageError for one that the model does not have."""
    if isinstance(model, DraftingModel):
        if kind in (*VERIFIED, "sequential"):
            return "verified"
        raise UsageError(
            f"setting decoding: a lossless model does not decode by {kind!r}; choose verified, typical, or sequential "
            "(no drafts)"
        )
    if model.mask_token_id == NO_MASK:
        if kind == "sequential":
            return "verified"
        raise UsageError(
            f"setting decoding: an autoregressive model does not decode by {kind!r}; it has sequential alone"
        )
    if kind in RULES:
        return "denoised"
    if kind not in CHECKED:
        raise UsageError(
            f"setting decoding: only a lossless model decodes by {kind!r}; convert with --lossless, or choose another"
        )
    geometry = model.geometry
    if (geometry.prediction, geometry.context) != ("shifted", "causal"):
        raise UsageError(
            f"setting decoding: {kind!r} needs a model that reads from left to right, and this one has prediction "
            f"{geometry.prediction} and context {geometry.context}; convert with --prediction shifted --context "
            "causal, or choose another"
        )
    return "checked"


def kinds_of(model: BlockDiffusionModel) -> list[str]:
    """All kinds of decoding that the model has."""
    kinds = []
    for kind in (*RULES, *CHECKED, *VERIFIED):
        with suppress(UsageError):
            way_of(model, kind)
            kinds.append(kind)
    return kinds
