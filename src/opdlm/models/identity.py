"""The identity check: under a causal mask the adapted model is the original, and masks rule it."""

import torch

from opdlm.core.layout import Attention, causal
from opdlm.core.types import Geometry
from opdlm.errors import IdentityCheckError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.cache import KVCache
from opdlm.models.parts import input_embedding
from opdlm.models.verdict import check_convertible

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
_LONGEST_WINDOW = 1024


@torch.no_grad()
def identity_check(model: BlockDiffusionModel, tolerance: float | None = None) -> float:
    """Proves on random tokens that the adapted model under a causal mask is the original, and that masks rule it.

    Args:
        tolerance: largest allowed difference, as a share of the largest logit (at least of 1). Default: by the model's
            dtype, from 1e-4 in float32 to 3e-2 in bfloat16. Check in float32 where memory allows.

    Returns:
        The largest absolute difference of a logit (the mask token's aside).

    Raises:
        UnsupportedModelError: no mask adapts this architecture.
        IdentityCheckError: names the part that differs: the causal pass, the LM head, the sliding window, the cache,
            the positions, or the mask itself.
    """
    check_convertible(model.model.config)
    was_training = model.training
    model.eval()
    allowed = _TOLERANCE.get(model.dtype, 1e-4) if tolerance is None else tolerance
    try:
        difference = _check_logits(model, allowed)
        _check_window(model, allowed)
        _check_positions(model, allowed)
        _check_cache(model, allowed)
        _check_mask_rules(model)
    finally:
        model.train(was_training)
    return difference


def _random_ids(model: BlockDiffusionModel, rows: int, length: int) -> torch.Tensor:
    vocabulary = input_embedding(model.model).weight.shape[0]
    generator = torch.Generator().manual_seed(20260606)
    return torch.randint(0, vocabulary, (rows, length), generator=generator).to(model.device)


def _positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


def _compare(ours: torch.Tensor, original: torch.Tensor, allowed: float, part: str) -> float:
    """Largest absolute difference; raises if it is larger than `allowed` times the largest original entry (or 1)."""
    ours, original = ours.float(), original.float()
    if not original.isfinite().all():
        raise IdentityCheckError(
            "the original itself computes values that are not finite; its weights or its config are damaged, or its "
            "dtype is too narrow: download it again, or load it in float32"
        )
    difference = (ours - original).abs().max().item()
    limit = allowed * max(1.0, original.abs().max().item())
    if not difference <= limit:  # a NaN must not pass
        raise IdentityCheckError(
            f"{part} differs from the original by {difference:.3g} (allowed: {limit:.3g}); "
            "this architecture is not adapted faithfully, choose another model and report this one"
        )
    return difference


def _check_logits(model: BlockDiffusionModel, allowed: float) -> float:
    """Rows of different lengths, padded on the right, through the original's own forward and through ours."""
    ids = _random_ids(model, 3, 23)
    position = _positions(ids)
    valid = position < torch.tensor([[5], [14], [23]], device=ids.device)
    sampled = torch.arange(model.logits(model.causal_hidden(ids[:1, :1])).shape[-1], device=ids.device)
    sampled = sampled != model.mask_token_id

    def check(ours: torch.Tensor, original: torch.Tensor, part: str) -> float:
        return _compare(model.logits(ours)[..., sampled], original[..., sampled], allowed, part)

    unpadded = model.model(input_ids=ids[2:], use_cache=False).logits
    check(model.causal_hidden(ids[2:]), unpadded, "the LM head (a scale or soft cap of its own?)")
    original = model.model(input_ids=ids, attention_mask=valid.long(), use_cache=False).logits[valid]
    check(model.causal_hidden(ids)[valid], original, "the causal pass over rows padded on the right (not causal?)")
    return check(model.hidden(ids, causal(position, valid))[valid], original, "the pass under our causal mask")


def _check_window(model: BlockDiffusionModel, allowed: float) -> None:
    """A row longer than the sliding window, where that is affordable."""
    windows = [window for window in model._windows.values() if window is not None and window <= _LONGEST_WINDOW]
    if not windows:
        return
    ids = _random_ids(model, 1, max(windows) + 9)
    attention = causal(_positions(ids), torch.ones_like(ids, dtype=torch.bool))
    _compare(model.hidden(ids, attention), model.causal_hidden(ids), allowed, "the pass beyond the sliding window")


def _check_positions(model: BlockDiffusionModel, allowed: float) -> None:
    """Columns in reverse order with their position ids: packed rows need a model that looks at these alone."""
    ids = _random_ids(model, 1, 17)
    attention = causal(_positions(ids).flip(1), torch.ones_like(ids, dtype=torch.bool))
    reversed_hidden = model.hidden(ids.flip(1), attention).flip(1)
    _compare(reversed_hidden, model.causal_hidden(ids), allowed, "the pass over reordered columns")


def _check_cache(model: BlockDiffusionModel, allowed: float) -> None:
    """The second half of a row on the cached keys of the first."""
    ids = _random_ids(model, 2, 18)
    position, half = _positions(ids), 9
    stream = torch.zeros_like(ids)
    cache, parts = KVCache(2, 18), []
    for start in (0, half):
        end = start + half
        span = slice(start, end)
        geometry = Geometry(1, context="causal")
        attention = Attention(geometry, position[:, span], stream[:, span], position[:, :end], stream[:, :end])
        parts.append(model.hidden(ids[:, span], attention, cache))
    _compare(torch.cat(parts, 1), model.causal_hidden(ids), allowed, "the pass with a KV cache")


def _check_mask_rules(model: BlockDiffusionModel) -> None:
    """In one block of 8, the first output must depend on the last token: a model that ignores masks stays causal."""
    ids = _random_ids(model, 1, 8)
    other = ids.clone()
    weight = input_embedding(model.model).weight
    different = (weight != weight[ids[0, -1]]).any(1).nonzero()  # rows that the embedding has grown by are all equal
    if not len(different):
        raise IdentityCheckError("all tokens have the same embedding; the weights are no trained ones, use others")
    other[0, -1] = different[0, 0]
    attention = Attention.within(Geometry(8), _positions(ids), torch.zeros_like(ids))
    if torch.equal(model.hidden(ids, attention)[0, 0], model.hidden(other, attention)[0, 0]):
        raise IdentityCheckError(
            "the model ignores its attention mask (a bidirectional one changes nothing); "
            "load it with attn_implementation='sdpa' or 'eager', or choose another model"
        )
