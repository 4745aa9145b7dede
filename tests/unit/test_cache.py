"""The KV cache: what is written where, and that nothing but the mask gives a column its meaning."""

import pytest
import torch

from opdlm.core.layout import Attention
from opdlm.core.types import Geometry
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.cache import KVCache
from support import MASK, assert_close, tiny_model

GEOMETRY = Geometry(4)


@pytest.fixture(scope="module")
def model() -> BlockDiffusionModel:
    return BlockDiffusionModel(tiny_model(), GEOMETRY, MASK)


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def step(model: BlockDiffusionModel, ids: torch.Tensor, start: int, cache: KVCache, empty: int = 0) -> torch.Tensor:
    """Clean tokens at [start, start + Q) on top of the columns before; `empty` more columns are in view, but empty."""
    window = start + torch.arange(ids.shape[1]).expand_as(ids)
    keys = torch.arange(start + ids.shape[1] + empty).expand(ids.shape[0], -1)
    key_stream = torch.where(keys < start + ids.shape[1], 0, -1)
    return model.hidden(ids, Attention(GEOMETRY, window, torch.zeros_like(ids), keys, key_stream), cache)


def test_a_slot_is_reused_without_being_cleared(model: BlockDiffusionModel) -> None:
    """Else a prompt that takes over a slot would see the text of the one before it."""
    ids, cache = random_ids(2, 8), KVCache(2, 16)
    fresh = [step(model, ids[:, :4], 0, KVCache(2, 16))]
    step(model, random_ids(2, 16, seed=1), 0, cache)  # an earlier, longer text
    again = step(model, ids[:, :4], 0, cache, empty=12)
    assert_close(again, fresh[0])


def test_padding_queries_write_nothing(model: BlockDiffusionModel) -> None:
    """Else an idle row, or the padding of a prefill, would destroy columns that hold finished text."""
    ids, cache = random_ids(1, 8), KVCache(1, 8)
    expected = step(model, ids[:, :4], 0, cache), cache._layers[0].keys[:, :, :8].clone()
    position = torch.arange(4)[None]
    padding = torch.full_like(position, -1)
    with torch.no_grad():
        model.hidden(ids[:, 4:], Attention(GEOMETRY, position, padding, position, torch.zeros_like(position)), cache)
    assert torch.equal(cache._layers[0].keys[:, :, :8], expected[1])


def test_a_view_writes_only_its_rows(model: BlockDiffusionModel) -> None:
    """Else the prefill of one slot would disturb the rows that are being decoded."""
    ids, cache = random_ids(3, 8), KVCache(3, 8)
    whole = step(model, ids, 0, cache)
    before = cache._layers[0].keys.clone()
    other = random_ids(2, 8, seed=1)
    hidden = step(model, other, 0, cache.at(torch.tensor([2, 0])))
    assert_close(hidden, step(model, other, 0, KVCache(2, 8)))
    assert torch.equal(cache._layers[0].keys[1], before[1])
    assert not torch.equal(cache._layers[0].keys[0], before[0])
    assert torch.equal(step(model, ids[1:2], 0, cache.at(torch.tensor([1]))), whole[1:2])


def test_keep_and_resize_do_not_change_what_is_there(model: BlockDiffusionModel) -> None:
    """Else rows would continue with the past of another row after the batch has been compacted."""
    ids, cache = random_ids(3, 12), KVCache(3, 8)
    step(model, ids[:, :8], 0, cache)
    cache.keep(torch.tensor([2, 0]))
    cache.resize(2, 12)
    kept = ids[[2, 0]]
    expected = step(model, kept, 0, KVCache(2, 12))[:, 8:]
    assert_close(step(model, kept[:, 8:], 8, cache), expected)


def test_a_shared_prefix_is_written_once(model: BlockDiffusionModel) -> None:
    """Else rows whose prompts begin alike would not see their beginning, or would lose what stands behind it."""
    ids, cache = random_ids(3, 12), KVCache(3, 12)
    ids[:, :8] = ids[0, :8]
    step(model, ids, 0, cache)
    whole = cache._layers[0].keys.clone()
    for layer in cache._layers.values():
        layer.keys[1:, :, :8], layer.values[1:, :, :8] = 9.0, 9.0
    cache.spread(0, 8)
    assert_close(cache._layers[0].keys, whole)
    assert_close(step(model, ids[:, 8:], 8, cache), step(model, ids, 0, KVCache(3, 12))[:, 8:])


def test_misuse_is_refused(model: BlockDiffusionModel) -> None:
    """Else columns behind the end would be lost, or every step would be kept alive by the autograd graph."""
    ids = random_ids(1, 8)
    with pytest.raises(ValueError, match=r"resize\(\)"):
        step(model, ids, 0, KVCache(1, 4))
    position = torch.arange(8)[None]
    attention = Attention.within(GEOMETRY, position, torch.zeros_like(position))
    with pytest.raises(RuntimeError, match="no_grad"):
        model.hidden(ids, attention, KVCache(1, 8))
    with torch.no_grad(), pytest.raises(RuntimeError, match="prepare"):
        model.model.base_model(input_ids=ids, **{model.cache_argument: KVCache(1, 8)})
