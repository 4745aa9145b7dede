"""What a decoder costs, from its shapes alone."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from opdlm.models.shapes import NAMED_SHAPES, Decoder, named_shape, without_weights
from support import tiny_model

PUBLISHED = {  # parameters, of the model cards and the safetensors indices on huggingface.co/Qwen
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", NAMED_SHAPES)
def test_named_shapes_are_the_published_models(name: str) -> None:
    """Else a plan for Qwen3-4B would be one for a model that nobody has."""
    config = named_shape(name)
    assert config is not None
    found = Decoder.of(without_weights(config))
    assert found.parameters == PUBLISHED[name]
    norms = found.parameters - found.body - found.embedding - (found.head if name == "qwen3-8b" else 0)
    assert 0 < norms < 1_000_000, "linear layers, embedding and head are all but the norms"
    assert named_shape("qwen3-5b") is None


def test_flops_are_those_that_torch_counts() -> None:
    """Else hours and shares of a GPU's peak would be counted from another number of operations than the model's."""
    model, rows, length = tiny_model("qwen3", attention="eager"), 2, 24
    decoder = Decoder.of(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(rows, length, dtype=torch.int64))
    expected = decoder.forward_flops(rows * length, rows * length**2, rows * length)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
