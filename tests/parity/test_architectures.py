"""Nine architectures, one adaptation: the equivalences that make a converted model the same model under other masks.

Shape letters: B rows, T positions, S block size, D hidden size. All models are tiny, random and float32.
"""

from functools import cache

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from opdlm.core.layout import Attention, causal
from opdlm.core.types import Geometry
from opdlm.models.block_diffusion import NEVER_SAMPLED, BlockDiffusionModel
from opdlm.models.cache import KVCache
from opdlm.models.identity import identity_check
from opdlm.models.parts import input_embedding
from support import ARCHITECTURES, MASK, VOCABULARY, WINDOW, assert_close, tiny_model

SIZE, LENGTH = 4, 22  # five whole blocks and half a block; three sliding windows

each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@cache
def adapted(name: str) -> BlockDiffusionModel:
    return BlockDiffusionModel(tiny_model(name), Geometry(SIZE), MASK)


def random_ids(rows: int = 2, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


def positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


def clean(geometry: Geometry, ids: torch.Tensor) -> Attention:
    return Attention.within(geometry, positions(ids), torch.zeros_like(ids))


def packed(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean tokens, then every block again as a noised stream of its own; (ids, position, stream), each [B, 2T]."""
    noised = torch.where(positions(ids) % 3 == 1, MASK, ids)
    stream = positions(ids) // SIZE + 1
    return torch.cat([ids, noised], 1), positions(ids).repeat(1, 2), torch.cat([torch.zeros_like(ids), stream], 1)


# --- the original is inside ---------------------------------------------------------------------------------------


@each_architecture
@torch.no_grad()
def test_a_causal_mask_gives_the_original_logits(name: str) -> None:
    """Else conversion would start from another model than the one that was trained."""
    model, ids = adapted(name), random_ids()
    expected = model.model(input_ids=ids).logits
    hidden = model.hidden(ids, causal(positions(ids), torch.ones_like(ids, dtype=torch.bool)))
    logits = model.logits(hidden)
    assert_close(logits[..., :MASK], expected[..., :MASK])
    assert (logits[..., MASK] == NEVER_SAMPLED).all()
    assert identity_check(model) <= 1e-4


@each_architecture
@torch.no_grad()
def test_blocks_of_one_token_are_causal(name: str) -> None:
    """Else block boundaries would be off by one somewhere, for every block size."""
    model, ids = adapted(name), random_ids()
    assert_close(model.hidden(ids, clean(Geometry(1), ids)), model.causal_hidden(ids))


@each_architecture
@torch.no_grad()
def test_a_causal_context_is_the_original_stream(name: str) -> None:
    """Else `context="causal"` could not share the AR model's KV cache: its clean stream would be something else."""
    model, ids = adapted(name), random_ids()
    row, position, stream = packed(ids)
    geometry = Geometry(SIZE, context="causal")
    hidden = model.hidden(row, Attention.within(geometry, position, stream))
    assert_close(hidden[:, :LENGTH], model.causal_hidden(ids))


@each_architecture
@torch.no_grad()
def test_padding_on_the_right_changes_nothing(name: str) -> None:
    """Else the teacher's targets would depend on the other rows of the batch."""
    model, ids = adapted(name), random_ids()
    padded = torch.cat([ids, random_ids(seed=1)], 1)
    assert_close(model.causal_hidden(padded)[:, :LENGTH], model.causal_hidden(ids))


# --- blocks -------------------------------------------------------------------------------------------------------


def seen_by_definition(geometry: Geometry, attention: Attention, window: int | None) -> torch.Tensor:
    """[B, Q, K] the mask of BD3-LM, written as the three sentences of the paper, pair by pair."""
    rows, queries, keys = *attention.query_position.shape, attention.key_position.shape[1]
    seen = torch.zeros(rows, queries, keys, dtype=torch.bool)
    for b, q, k in torch.cartesian_prod(torch.arange(rows), torch.arange(queries), torch.arange(keys)).tolist():
        q_pos, q_stream = int(attention.query_position[b, q]), int(attention.query_stream[b, q])
        k_pos, k_stream = int(attention.key_position[b, k]), int(attention.key_stream[b, k])
        q_block, k_block = q_pos // geometry.block_size, k_pos // geometry.block_size
        if q_stream == 0:
            seen[b, q, k] = k_stream == 0 and k_block <= q_block
        else:
            seen[b, q, k] = (k_stream == 0 and k_block < q_block) or (k_stream == q_stream and k_block == q_block)
        if window is not None and q_pos - k_pos >= window:
            seen[b, q, k] = False
    return seen


@each_architecture
@torch.no_grad()
def test_one_block_is_bidirectional(name: str) -> None:
    """Else the model would keep its causal habit inside a block and could not look at tokens to the right."""
    model, ids = adapted(name), random_ids()
    everything = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool)
    distance = positions(ids)[:, None, :, None] - positions(ids)[:, None, None, :]
    near = everything & (distance < WINDOW)
    mask = {"mistral": near, "gemma3": {"full_attention": everything, "sliding_attention": near}}.get(name, everything)
    expected = model.model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions(ids))
    hidden = model.hidden(ids, clean(Geometry(64), ids))
    assert_close(hidden, expected.last_hidden_state)
    assert not torch.allclose(hidden[:, 0], model.causal_hidden(ids)[:, 0], atol=1e-3)


@each_architecture
@torch.no_grad()
def test_a_packed_row_is_its_blocks_one_by_one(name: str) -> None:
    """Else a training row of many noised blocks would not be the states that decoding visits, one at a time."""
    model, ids = adapted(name), random_ids()
    row, position, stream = packed(ids)
    together = model.hidden(row, Attention.within(model.geometry, position, stream))
    for start in range(0, LENGTH, SIZE):
        end = min(start + SIZE, LENGTH)
        alone = torch.cat([ids[:, :start], row[:, LENGTH + start : LENGTH + end]], 1)
        attention = Attention.within(model.geometry, positions(alone), (positions(alone) >= start).long())
        expected = model.hidden(alone, attention)[:, start:]
        assert_close(together[:, LENGTH + start : LENGTH + end], expected)
    assert_close(together[:, :LENGTH], model.hidden(ids, clean(model.geometry, ids)))


@each_architecture
@torch.no_grad()
def test_cached_is_uncached(name: str) -> None:
    """Else decoding would compute something else than training, and rollouts would not be the student's own text.

    Two rows in different blocks, with an idle column of padding each step, as in the sampler's batch.
    """
    model, ids = adapted(name), random_ids(length=5 * SIZE)
    whole = model.hidden(ids, clean(model.geometry, ids))
    cache, keys = KVCache(2, 5 * SIZE), positions(ids)
    lag = torch.tensor([[0], [1]])  # row 1 is one block behind
    for step in range(6):
        block = step - lag
        inside = (block >= 0) & (block < 5)
        window = block.clamp(0, 4) * SIZE + torch.arange(SIZE)
        query_stream = torch.where(inside, 0, -1).expand(-1, SIZE)
        key_stream = torch.where((keys // SIZE <= block) & inside, 0, -1)
        attention = Attention(model.geometry, window, query_stream, keys, key_stream)
        hidden = model.hidden(ids.gather(1, window), attention, cache)
        expected = whole.gather(1, window[..., None].expand(-1, -1, whole.shape[-1]))
        assert_close(hidden[inside[:, 0]], expected[inside[:, 0]])


@each_architecture
def test_no_information_flows_backwards(name: str) -> None:
    """Else a block would read the answer: gradients of its outputs reach only what it may see.

    By gradient, not by value: a leak of any size is a nonzero gradient.
    """
    model, ids = adapted(name), random_ids(rows=1, length=4 * SIZE)
    row, position, stream = packed(ids)
    embedded: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    handle = input_embedding(model.model).register_forward_hook(keep)
    try:
        hidden = model.hidden(row, Attention.within(model.geometry, position, stream))
    finally:
        handle.remove()
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    (hidden[0, 4 * SIZE + SIZE] @ direction).backward(retain_graph=True)  # first noised token of block 1
    touched = _touched(embedded[0])
    own = 4 * SIZE + torch.arange(SIZE, 2 * SIZE)
    assert touched[own].all(), "it must see all of its own noised block, to the right too"
    assert touched[:SIZE].all(), "it must see the clean block before it"
    assert touched.sum() == 2 * SIZE, "it sees a token that it must not see"
    embedded[0].grad = None
    (hidden[0, SIZE] @ direction).backward()  # first clean token of block 1
    touched = _touched(embedded[0])
    assert touched[: 2 * SIZE].all()
    assert touched.sum() == 2 * SIZE, "the clean stream sees a later block or a noised one"


def _touched(embedded: torch.Tensor) -> torch.Tensor:
    """[2T] bool, which input tokens got a gradient."""
    assert embedded.grad is not None
    return (embedded.grad[0] != 0).any(-1)


# --- windows ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_sliding_window_limits_every_layer() -> None:
    """Else a long text would reach layers that never saw one, and the model would degrade beyond its window."""
    ids = random_ids(rows=1, length=48)
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % MASK
    for window, changes in ((WINDOW, False), (None, True)):
        model = BlockDiffusionModel(tiny_model("mistral", sliding_window=window), Geometry(SIZE), MASK)
        attention = clean(model.geometry, ids)
        # Three layers reach 3 * (WINDOW - 1) positions back, and within a block the first tokens reach to its end.
        first, second = model.hidden(ids, attention)[0, 36:], model.hidden(other, attention)[0, 36:]
        assert torch.equal(first, second) is not changes


@pytest.mark.parametrize("window", [None, WINDOW])
def test_masks_are_the_papers(window: int | None) -> None:
    """Else dense or FlexAttention would train under a mask that is not the method's (BD3-LM, figure 3)."""
    ids = random_ids(rows=2, length=3 * SIZE + 1)
    _, position, stream = packed(ids)
    attention = Attention.within(Geometry(SIZE), position, stream)
    expected = seen_by_definition(Geometry(SIZE), attention, window)
    assert torch.equal(attention.dense(window), expected)
    flex = create_mask(attention.flex(window).mask_mod, 2, None, *expected.shape[1:], device="cpu")
    assert torch.equal(flex[:, 0], expected)


@torch.no_grad()
def test_eager_attention_is_sdpa() -> None:
    """Else a model that only has eager attention (GPT-OSS, Gemma 2) would run under a bool mask added to its scores."""
    ids = random_ids()
    for name in ("llama", "gemma3"):
        eager = BlockDiffusionModel(tiny_model(name, attention="eager"), Geometry(SIZE), MASK)
        expected = adapted(name).hidden(ids, clean(Geometry(SIZE), ids))
        assert_close(eager.hidden(ids, clean(Geometry(SIZE), ids)), expected)


# --- the head -----------------------------------------------------------------------------------------------------


@each_architecture
def test_the_mask_token_has_no_probability(name: str) -> None:
    """Else the sampler could write it, and the loss would push probability onto it."""
    model = adapted(name)
    hidden = torch.randn(3, model.model.config.hidden_size, requires_grad=True)
    logits = model.logits(hidden)
    assert logits.shape == (3, VOCABULARY)
    assert logits.dtype == torch.float32
    probability = logits.softmax(-1)
    assert (probability[:, MASK] == 0).all()
    loss = -(probability * logits.log_softmax(-1)).sum()
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@each_architecture
def test_the_heads_parameters_are_what_logits_reads(name: str) -> None:
    """Else a trainer that gathers or freezes the head by this list would miss one."""
    model = adapted(name)
    hidden = torch.randn(2, model.model.config.hidden_size)
    read = [p for p, g in zip(model.parameters(), _gradients(model, hidden), strict=True) if g is not None]
    assert {id(p) for p in read} == {id(p) for p in model.head_parameters()}


def _gradients(model: BlockDiffusionModel, hidden: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return torch.autograd.grad(model.logits(hidden).logsumexp(-1).sum(), list(model.parameters()), allow_unused=True)
