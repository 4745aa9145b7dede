"""Weights laid out for a CPU's kernels: the same model, faster."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.packed import PackedLinear, can_pack, pack_where_it_pays
from opdlm.models.sampled_hash import sampled_hash
from opdlm.sampling.api import DiffusionLM, load, load_autoregressive
from opdlm.tiny.weights import lossless_path, student_path
from support import ARCHITECTURES, MASK, assert_close, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="needs x86 and a torch with oneDNN")


@needs_kernels
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_packed_model_has_the_same_logits(name: str) -> None:
    """At every number of tokens, with shared and own embeddings, with biases and without."""
    plain = tiny_model(name)
    model = copy.deepcopy(plain)
    pack_where_it_pays(model, smallest=0)
    layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    assert layers
    assert not any(type(layer) is nn.Linear for layer in model.modules())
    for tokens in (1, 2, 3, 4, 40):
        ids = torch.randint(0, MASK, (1, tokens), generator=torch.Generator().manual_seed(tokens))
        assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    rows = torch.randint(0, MASK, (2, 1), generator=torch.Generator().manual_seed(0))
    assert_close(model(input_ids=rows).logits, plain(input_ids=rows).logits)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    assert sampled_hash(model) == sampled_hash(plain), "else --resume would take it for other weights"


@needs_kernels
@pytest.mark.parametrize("decoding", ["static", "prefix:0.6", "dynamic:0.6"])
def test_a_packed_model_writes_the_same_text(decoding: str) -> None:
    """Else the commands, which pack, would write something else than the Python interface."""
    texts = []
    for packed in (False, True):
        model = BlockDiffusionModel(tiny_model("qwen3"), Geometry(4), MASK)
        if packed:
            pack_where_it_pays(model.model, smallest=0)
        lm = DiffusionLM(model, tiny_tokenizer(mask=True), GenerationSettings())
        output = lm.generate([[1, 5, 9], [1, 7]], max_new_tokens=24, decoding=decoding)
        texts.append(output.sequences.tolist())
    assert texts[0] == texts[1]


@needs_kernels
@pytest.mark.parametrize("decoding", ["checked", "verified"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_shipped_models_packed(decoding: str, dtype: str) -> None:
    """A gate's hooks stay on the layers, and each decoding goes through the packed ones."""
    if not can_pack(CPU, getattr(torch, dtype)):
        pytest.skip(f"this CPU has no kernels for {dtype}")
    folder = lossless_path() if decoding == "verified" else student_path()
    plain, packed = load(folder, "cpu", dtype), load(folder, "cpu", dtype)
    pack_where_it_pays(packed.model.model, smallest=0)
    prompts = [plain.tokenizer("How many r are in strawberry?")["input_ids"], plain.tokenizer("2 + 2 =")["input_ids"]]
    ours, theirs = (lm.generate(prompts, max_new_tokens=32, decoding=decoding) for lm in (packed, plain))
    assert packed.decode(ours) == plain.decode(theirs)
    assert ours.tokens_per_forward == theirs.tokens_per_forward


@needs_kernels
def test_large_layers_alone_are_packed() -> None:
    """Small ones would be slower. `load` packs when it is asked to."""
    model = tiny_model("llama", intermediate_size=4096)
    pack_where_it_pays(model)
    layer = model.get_submodule("model.layers.0")
    assert type(layer.get_submodule("mlp.up_proj")) is PackedLinear
    assert type(layer.get_submodule("self_attn.q_proj")) is nn.Linear


@needs_kernels
def test_load_packs_when_asked(tmp_path: Path) -> None:
    """The commands ask; from Python a model stays one that can be trained and saved."""
    tiny_model("llama", intermediate_size=4096).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for pack in (False, True):
        model = load_autoregressive(tmp_path, "cpu", pack=pack).model.model
        assert any(isinstance(layer, PackedLinear) for layer in model.modules()) == pack


def test_packing_and_compiling_exclude_each_other() -> None:
    """The compiler cannot read packed weights; it would fail in the middle of a text."""
    with pytest.raises(UsageError, match="leave out one of compile and pack"):
        load(student_path(), "cpu", pack=True, compile=True)
