"""Models that bitsandbytes has quantised, as originals of a conversion: their weights become plain ones."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from cli_support import SMALL, call
from opdlm.checkpoints.load import load_ar_model, load_checkpoint
from support import tiny_model, tiny_tokenizer

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install bitsandbytes")


@pytest.fixture(params=[(4, torch.bfloat16), (4, torch.float32), (8, torch.bfloat16), (8, torch.float32)], ids=str)
def quantised(request, tmp_path):
    """Folder of a tiny model in 4 or 8 bits; what is not quantised has the given type."""
    bits, dtype = request.param
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    tiny_model(**sizes, head_dim=16).save_pretrained(tmp_path / "plain")
    how = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=how, device_map="cpu", dtype=dtype
    )
    model.save_pretrained(tmp_path / "quantised")
    tiny_tokenizer().save_pretrained(tmp_path / "quantised")
    return tmp_path / "quantised"


def test_weights_are_plain(quantised):
    """Without it a forward would meet two types of numbers, and end in a traceback."""
    model, _ = load_ar_model(quantised)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize("flags", [(), ("--lora-rank", "2"), ("--lora-rank", "2", "--adapter-only")], ids=" ".join)
def test_conversion(flags, quantised, prompts, tmp_path):
    """Without it hours of training would end in an error when the first checkpoint is written."""
    assert call("doctor", quantised, "--no-speed", "--prompts", prompts, "--prompt-tokens", "4") == 0
    words = ("--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--rollouts", "1")
    assert call("convert", quantised, *words, *flags) == 0
    student, _ = load_checkpoint(tmp_path / "run" / "model")
    assert not hasattr(student.model.config, "quantization_config")
    assert call("generate", tmp_path / "run", "one", "--max-new-tokens", "4") == 0
