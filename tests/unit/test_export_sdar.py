"""SDAR folders: what the engines find in them, what is refused, and the same logits and tokens as opdlm's."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from lossless import drafting
from opdlm.checkpoints import export_sdar as export_sdar_module
from opdlm.checkpoints.export_sdar import MASK_ID, export_sdar
from opdlm.core.types import Geometry
from opdlm.errors import IdentityCheckError, OutputExistsError, UnsupportedModelError, UsageError
from opdlm.evals.sdar import parity as parity_module
from opdlm.evals.sdar.cycle import Cycle
from opdlm.evals.sdar.parity import REPORT, SdarCode, check_parity
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import MASK_TOKEN, find_or_add_mask_token
from rollouts import student
from support import tiny_model, tiny_tokenizer

SMALL = 80
"""A mask token for tests, which need no table of 151,936 rows then."""
TEXT = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?+"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that demand a mask token of a small vocabulary."""
    for module in (export_sdar_module, parity_module):
        monkeypatch.setattr(module, "MASK_ID", SMALL)


@cache
def _words(count: int) -> dict[str, int]:
    """As Qwen3's vocabulary in size: characters, and tokens that no text here has."""
    used = ["<pad>", "<s>", "</s>", *TEXT]
    return {word: index for index, word in enumerate(used + [f"~{index}" for index in range(len(used), count)])}


def large_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """One token a character, of `words` in all; the next new token gets the id `words`."""
    tokenizer = Tokenizer(models.WordLevel(_words(words), unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="?"
    )


def qwen3(words: int = SMALL, size: int = 4, **changes):
    """A tiny Qwen3 student with its tokenizer; `changes` go into its config."""
    tokenizer = large_tokenizer(words)
    about = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
    about |= {
        "vocab_size": words + 11,
        "initializer_range": 0.7,
        "rope_parameters": {"rope_type": "default", "rope_theta": 4e5},
    }
    model = tiny_model("qwen3", **(about | changes))
    mask = find_or_add_mask_token(model, tokenizer)
    return BlockDiffusionModel(model, Geometry(size), mask), tokenizer


def export(folder: Path, model, tokenizer, dtype=torch.float32):
    return export_sdar(model, tokenizer, folder, dtype=dtype, threshold=0.3)


def test_the_engines_find_what_they_read(tmp_path: Path) -> None:
    """Else SGLang would fail on the tied head or turn positions by 10,000, and LMDeploy would not know the model."""
    model, tokenizer = qwen3(MASK_ID, tie_word_embeddings=True)
    folder = export(tmp_path / "sdar", model, tokenizer)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.architectures == ["SDARForCausalLM"]
    assert config.model_type == "sdar"
    assert config.rope_theta == config.rope_parameters["rope_theta"] == 4e5  # of SGLang, and of LMDeploy
    assert config.tie_word_embeddings is False
    assert (config.head_dim, config.vocab_size, config.attention_bias) == (8, MASK_ID + 11, False)
    assert config.sliding_window is None
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == {*(name for name, _ in model.model.named_parameters()), "lm_head.weight"}
    assert weights["lm_head.weight"][MASK_ID].count_nonzero() == 0
    embedding = model.model.get_input_embeddings().weight
    assert torch.equal(weights["model.embed_tokens.weight"][MASK_ID], embedding[model.mask_token_id])
    assert AutoTokenizer.from_pretrained(folder).mask_token_id == MASK_ID
    assert (folder / "sglang.yaml").read_text() == "threshold: 0.3\nblock_size: 4\n"
    with pytest.raises(OutputExistsError):
        export(folder, model, tokenizer)


@pytest.mark.parametrize(("words", "size"), [(SMALL, 4), (SMALL - 3, 4), (SMALL, 3)])
def test_the_same_logits_and_tokens(words: int, size: int, small: None, tmp_path: Path) -> None:
    """Else the engines would write another text: by the head, the rotary angles, the mask's row, the block's size."""
    model, tokenizer = qwen3(words, size, attention_bias=True)
    for parameter in model.parameters():  # biases and norms that are not those of a new model
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    (found,) = check_parity(model, tokenizer, export(tmp_path / "sdar", model, tokenizer), 0.3)
    assert found.holds
    assert found.largest_difference < 1e-4
    assert found.states > 20
    assert found.same_choice == found.positions
    assert (found.same_texts, found.texts) == (3, 3)
    report = json.loads((tmp_path / "sdar" / REPORT).read_text())
    assert report["readings"][0]["same_texts"] == 3
    if words < SMALL:
        assert model.mask_token_id != SMALL
        made = AutoTokenizer.from_pretrained(tmp_path / "sdar")
        assert made.mask_token_id == SMALL
        assert made.encode("a b") == tokenizer.encode("a b")


def test_rounded_weights_are_compared_with_rounded_weights(small: None, tmp_path: Path) -> None:
    """Else rounding would hide an error of the export, or look like one."""
    model, tokenizer = qwen3()
    folder = export(tmp_path / "sdar", model, tokenizer, torch.bfloat16)
    assert load_file(folder / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    with pytest.raises(IdentityCheckError):
        check_parity(model, tokenizer, folder, 0.3)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert check_parity(model, tokenizer, folder, 0.3)[0].holds


@pytest.mark.parametrize("broken", ["rope_theta", "weights"])
def test_a_wrong_folder_is_noticed(broken: str, small: None, tmp_path: Path) -> None:
    """Else the parity report would pass whatever was written."""
    model, tokenizer = qwen3()
    folder = export(tmp_path / "sdar", model, tokenizer)
    if broken == "rope_theta":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 10000.0}))
    else:
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] *= 1.003  # too little to change a token
        save_file(weights, folder / "model.safetensors")
    with pytest.raises(IdentityCheckError, match="do not serve it"):
        check_parity(model, tokenizer, folder, 0.3)
    (found,) = json.loads((folder / REPORT).read_text())["readings"]
    assert found["largest_difference"] > 1e-2
    assert (found["same_texts"] == 3) == (broken == "weights")


def test_the_cycle_ends_where_sglang_would_not() -> None:
    """Else a folder whose mask token is the most probable one would hang the export."""
    logits = torch.zeros(4, 10)
    logits[:, 9] = 5.0
    assert Cycle(4, 9, 0.5, 8, ()).write(lambda ids: logits, [1]) == [9, 9, 9]


def test_what_does_not_fit_is_refused_with_the_reason(small: None, tmp_path: Path) -> None:
    """Else an engine would load the folder and write nonsense."""

    def refused(model, tokenizer, kind: type[Exception], *words: str) -> None:
        with pytest.raises(kind) as caught:
            export(tmp_path / "sdar", model, tokenizer)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert not (tmp_path / "sdar").exists()

    model, tokenizer = qwen3()
    refused(model.at(Geometry(4, "shifted", "causal")), tokenizer, UsageError, "token i + 1", "causally", "same")
    refused(model.at(Geometry(4, "same", "causal")), tokenizer, UsageError, "causally", "--context block")
    refused(drafting(), tiny_tokenizer(), UsageError, "lossless", "--format uno", "--format hf")
    refused(student(), tiny_tokenizer(mask=True), UnsupportedModelError, "llama", "opdlm serve")
    refused(*qwen3(words=70, vocab_size=SMALL), UnsupportedModelError, "80 rows")
    model.model.config.rope_parameters["rope_type"] = "yarn"
    refused(model, tokenizer, UnsupportedModelError, "yarn")
    windowed, tokenizer = qwen3(use_sliding_window=True, sliding_window=5, max_window_layers=1)
    refused(windowed, tokenizer, UnsupportedModelError, "sliding window")
    _, full = qwen3(words=SMALL + 2)
    full.add_special_tokens({"mask_token": MASK_TOKEN})
    model = BlockDiffusionModel(qwen3(SMALL + 2)[0].model, Geometry(4), SMALL + 2)
    refused(model, full, UnsupportedModelError, f"'~{SMALL}'")


MODELLING = """\
from flash_attn.ops.triton.layer_norm import rms_norm_fn
from transformers import Qwen3ForCausalLM
from .configuration_sdar import SDARConfig


class SDARForCausalLM(Qwen3ForCausalLM):
    config_class = SDARConfig

    def forward(self, input_ids, attention_mask, position_ids, use_cache):
        hidden = (~attention_mask[:, None]).float() * -1e30
        return super().forward(input_ids, attention_mask=hidden, position_ids=position_ids, use_cache=use_cache)
"""
CONFIGURATION = """\
from transformers import Qwen3Config


class SDARConfig(Qwen3Config):
    model_type = "sdar"
"""


@pytest.mark.slow
def test_sdars_own_file_runs_in_a_process_of_its_own(small: None, tmp_path: Path) -> None:
    """Else the report could not be held to the format's authors. Their file is not ours to ship: this one stands in."""
    model, tokenizer = qwen3()
    folder = export(tmp_path / "sdar", model, tokenizer)
    code = tmp_path / "code"
    code.mkdir()
    (code / "configuration_sdar.py").write_text(CONFIGURATION)
    (code / "modeling_sdar.py").write_text(MODELLING)
    plain, theirs = check_parity(model, tokenizer, folder, 0.3, SdarCode(code))
    assert theirs.reading == "modeling_sdar.py of code"
    assert 1 < theirs.states <= plain.states
    assert theirs.holds
    assert theirs.same_choice == theirs.positions
    (code / "modeling_sdar.py").write_text(MODELLING.replace("-1e30", "0"))
    with pytest.raises(IdentityCheckError, match=r"modeling_sdar\.py of code"):
        check_parity(model, tokenizer, folder, 0.3, SdarCode(code))
    (code / "modeling_sdar.py").write_text("raise RuntimeError('not today')")
    with pytest.raises(UsageError, match=r"not today.*--sdar-python"):
        check_parity(model, tokenizer, folder, 0.3, SdarCode(code))
    with pytest.raises(UsageError, match="--sdar-python"):
        check_parity(model, tokenizer, folder, 0.3, SdarCode(code, "/nowhere/python"))
