"""What must not change a result: gradient checkpointing, dropout settings, FlexAttention, another view of the model."""

import pytest
import torch

from opdlm.core.layout import Attention
from opdlm.core.types import Geometry
from opdlm.errors import IdentityCheckError, UnsupportedModelError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.identity import identity_check
from support import MASK, assert_close, tiny_config, tiny_model

GEOMETRY = Geometry(4)


def ids_and_attention(length: int = 16, rows: int = 2) -> tuple[torch.Tensor, Attention]:
    ids = torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(3))
    return ids, Attention.within(GEOMETRY, torch.arange(length).expand_as(ids), torch.zeros_like(ids))


def gradients(model: BlockDiffusionModel) -> dict[str, torch.Tensor]:
    ids, attention = ids_and_attention()
    model.zero_grad()
    model.logits(model.hidden(ids, attention)).logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_checkpointed_gradients_are_equal(name: str) -> None:
    """Else the recomputation would run under another mask, as in the published code: gradients off by a quarter."""
    model = BlockDiffusionModel(tiny_model(name), GEOMETRY, MASK)
    plain = gradients(model)
    model.checkpoint_activations()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.train()
    layer = model.model.get_submodule(f"{model.model.base_model_prefix}.layers.0.mlp")
    handle = layer.register_forward_pre_hook(count)
    checkpointed = gradients(model)
    handle.remove()
    assert calls == 2, "the layer was not recomputed, so nothing was tested"
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)


def test_dropout_stays_off_in_training() -> None:
    """Else teacher and student would be compared through noise, and no check could compare training with decoding."""
    model = BlockDiffusionModel(tiny_model("gpt_neox", attention_dropout=0.5, hidden_dropout=0.5), GEOMETRY, MASK)
    model.checkpoint_activations()
    ids, attention = ids_and_attention()
    expected = model.eval().hidden(ids, attention)
    assert torch.equal(model.train().hidden(ids, attention), expected)


def test_another_geometry_is_a_view() -> None:
    """Else evaluating at another block size would copy the weights, or end the training mode of the original."""
    model = BlockDiffusionModel(tiny_model(), GEOMETRY, MASK).train()
    view = model.at(Geometry(8))
    assert view.geometry.block_size == 8
    assert view.model is model.model
    assert view.training
    assert model.training


def test_a_cached_pass_in_training_mode_is_refused() -> None:
    """Else gradient checkpointing would drop the cache and the sampler would decode without its own past."""
    from opdlm.models.cache import KVCache

    model = BlockDiffusionModel(tiny_model(), GEOMETRY, MASK).train()
    with pytest.raises(RuntimeError, match="eval"):
        model.hidden(*ids_and_attention(), KVCache(2, 16))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on purpose, see below
@torch.no_grad()
def test_flex_attention_is_dense_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run on a GPU with FlexAttention would train another model than the one that the tests see.

    The kernel itself is torch's; uncompiled here, since compiling takes longer than all other tests together.
    """
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations import flex_attention as integration

    def uncompiled(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **settings: object) -> torch.Tensor:
        del settings["training"]
        return flex_attention(query, key, value, **settings)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", uncompiled)
    for name in ("llama", "mistral", "gemma3"):
        flex = BlockDiffusionModel(tiny_model(name, attention="flex_attention"), GEOMETRY, MASK)
        dense = BlockDiffusionModel(tiny_model(name), GEOMETRY, MASK)
        ids, attention = ids_and_attention()
        assert_close(flex.hidden(ids, attention), dense.hidden(ids, attention))


def test_attention_without_masks_is_refused() -> None:
    """Else flash attention would quietly run causally, whatever the mask says."""
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="takes no mask"):
        BlockDiffusionModel(model, GEOMETRY, MASK)


def test_the_context_ends_where_cached_keys_would_go_stale() -> None:
    """Else a model with rotary frequencies that depend on the length would decode from keys of another frequency."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 32,
    }
    plain = BlockDiffusionModel(tiny_model("phi3"), GEOMETRY, MASK)
    stretched = BlockDiffusionModel(
        tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=32), GEOMETRY, MASK
    )
    assert plain.max_length == tiny_config("phi3").max_position_embeddings
    assert stretched.max_length == 32


# --- the identity check finds what it is there to find ------------------------------------------------------------


def spoil_argument(model: BlockDiffusionModel, name: str) -> None:
    """The decoder behaves as if `name` had not been given."""

    def drop(_module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, kwargs | {name: None}

    model.model.base_model.register_forward_pre_hook(drop, with_kwargs=True)


def test_identity_check_finds_a_model_that_ignores_masks() -> None:
    """Else such a model would be trained for days under a causal mask that nobody asked for."""
    model = BlockDiffusionModel(tiny_model(), GEOMETRY, MASK)
    spoil_argument(model, "attention_mask")
    with pytest.raises(IdentityCheckError, match=r"ignores its attention mask|reordered columns|KV cache"):
        identity_check(model)


def test_identity_check_finds_a_model_that_stays_causal() -> None:
    """Else an architecture that adds its own causal mask to ours would pass every comparison with the original."""
    model = BlockDiffusionModel(tiny_model(), GEOMETRY, MASK)

    def also_causal(_module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask, position = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is None or position is None:
            return args, kwargs
        keys = (
            torch.arange(mask.shape[-1]) if kwargs.get(model.cache_argument) is not None else position[:, None, None, :]
        )
        later = position[:, None, :, None] < keys
        return args, kwargs | {"attention_mask": mask.masked_fill(later, torch.finfo(mask.dtype).min)}

    model.model.base_model.register_forward_pre_hook(also_causal, with_kwargs=True)
    with pytest.raises(IdentityCheckError, match="ignores its attention mask"):
        identity_check(model)


def test_identity_check_finds_a_model_that_ignores_positions() -> None:
    """Else noised blocks, which stand behind the clean text, would get the positions of their columns."""
    model = BlockDiffusionModel(tiny_model(), GEOMETRY, MASK)
    spoil_argument(model, "position_ids")
    with pytest.raises(IdentityCheckError, match="reordered columns"):
        identity_check(model)


def test_identity_check_finds_an_unknown_scale_of_the_head() -> None:
    """Else teacher and student would be trained at a temperature that the model never had."""
    model = BlockDiffusionModel(tiny_model(), GEOMETRY, MASK)
    model.model.config.logit_scale = 0.5  # as Cohere's, but Llama's own forward knows none
    with pytest.raises(IdentityCheckError, match="LM head"):
        identity_check(model)


def test_identity_check_finds_a_window_of_another_size() -> None:
    """Else an architecture with a window convention of its own would pass on short texts and fail on long ones."""
    model = BlockDiffusionModel(tiny_model("mistral", sliding_window=40), GEOMETRY, MASK)
    model._windows["sliding_attention"] = 39
    with pytest.raises(IdentityCheckError, match="beyond the sliding window"):
        identity_check(model)


def test_identity_check_finds_a_cache_that_forgets() -> None:
    """Else every response would be decoded from a wrong past, and only the sampler's users would notice."""
    model = BlockDiffusionModel(tiny_model(), GEOMETRY, MASK)

    def swap_values(_module: object, args: tuple, kwargs: dict) -> None:
        if (cache := kwargs.get(model.cache_argument)) is not None and cache._layers:
            cache._layers[0].keys.zero_()

    model.model.base_model.register_forward_pre_hook(swap_values, with_kwargs=True)  # type: ignore[arg-type]
    with pytest.raises(IdentityCheckError, match="KV cache"):
        identity_check(model)


def test_identity_check_works_in_bfloat16_and_keeps_the_mode() -> None:
    """Else `doctor` would refuse every model on a GPU, or leave a student in another mode than it had."""
    model = BlockDiffusionModel(tiny_model("qwen3").bfloat16(), GEOMETRY, MASK).train()
    identity_check(model)
    assert model.training
