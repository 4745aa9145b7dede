"""Bits per byte count the response alone, and each byte once."""

import math

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from opdlm.errors import UsageError
from opdlm.evals.bits import bits_per_byte

VOCABULARY = 32
SEQUENCES = [([1, 2, 3, 4, 5], 2), ([6, 7, 8], 1), ([9, 10, 11, 12, 13, 14, 15, 16], 5), ([17], 1)]
TEXTS = ["abc", "é", "日本", ""]
BYTES = 3 + 2 + 6


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
        initializer_range=1.0,  # far from uniform
    )
    return Qwen3ForCausalLM(config).eval()


def test_uniform_model(model):
    """Without it the unit could be nats, or the length be counted in characters or tokens."""
    torch.nn.init.zeros_(model.lm_head.weight)
    tokens = 3 + 2 + 3
    assert bits_per_byte(model, SEQUENCES, TEXTS) == pytest.approx(tokens * math.log2(VOCABULARY) / BYTES)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_equals_one_token_at_a_time(model, batch_size):
    """Without it padding, the shift by one, or the prompt could enter the score."""
    bits = 0.0
    for ids, prompt_length in SEQUENCES:
        for position in range(prompt_length, len(ids)):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:position]])).logits[0, -1]
            bits -= float(logits.log_softmax(-1)[ids[position]]) / math.log(2)
    assert bits_per_byte(model, SEQUENCES, TEXTS, batch_size=batch_size) == pytest.approx(bits / BYTES, rel=1e-5)


def test_what_cannot_be_scored(model):
    """Without it nonsense would come back as a number."""
    with pytest.raises(UsageError, match="texts"):
        bits_per_byte(model, SEQUENCES, TEXTS[:1])
    with pytest.raises(UsageError, match="no prompt token"):
        bits_per_byte(model, [([1, 2], 0)], ["a"])
    with pytest.raises(UsageError, match="no prompt token"):
        bits_per_byte(model, [([1, 2], 3)], ["a"])
    with pytest.raises(UsageError, match="no text"):
        bits_per_byte(model, [([1, 2], 1)], [""])
