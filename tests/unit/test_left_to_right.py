"""The likelihood of given text is the product of what the decoder says token by token."""

import itertools
import math

import pytest
import torch

from opdlm.core.layout import AUTOREGRESSIVE, CLEAN, Attention
from opdlm.core.types import Geometry
from opdlm.evals.left_to_right import log_likelihoods
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from support import MASK, tiny_model

TEXTS = [([5, 9, 11, 7, 3, 8, 2], 3), ([4, 6], 1), ([1, 2, 3, 4, 5, 6, 7, 8, 9], 4), ([7, 7, 7, 7, 7], 1)]
GEOMETRIES = [
    Geometry(size, prediction, context)
    for size, prediction, context in itertools.product((1, 3, 4), ("same", "shifted"), ("block", "causal"))
]


@torch.no_grad()
def slowly(model, ids, given):
    """The oracle: one unpacked pass for each token, the rest of its block masked, nothing behind the block."""
    size, total = model.geometry.block_size, 0.0
    for target in range(given, len(ids)):
        end = target // size * size + size
        row = ids[:target] + [MASK] * (end - target)
        position = torch.arange(end)[None]
        stream = torch.where(position // size == target // size, 1, CLEAN)
        hidden = model.hidden(torch.tensor([row]), Attention.within(model.geometry, position, stream))
        output = hidden[0, target - (model.geometry.prediction == "shifted")]
        total += float(model.logits(output).log_softmax(-1)[ids[target]])
    return total


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_it_is_the_chain_rule_over_the_decoders_own_states(geometry):
    """Without it the number would be of states that no decoder visits: other masks, or tokens seen too early."""
    model = BlockDiffusionModel(tiny_model(), geometry, MASK)
    expected = [slowly(model, *text) for text in TEXTS]
    assert log_likelihoods(model, TEXTS) == pytest.approx(expected, abs=1e-4)
    assert log_likelihoods(model, TEXTS, batch_size=1) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_an_ar_model_has_its_own_likelihood():
    """Without it the teacher's column would be scored by another rule than everybody else scores it."""
    decoder = tiny_model()
    model = BlockDiffusionModel(decoder, AUTOREGRESSIVE, NO_MASK)
    expected = []
    for ids, given in TEXTS:
        logits = decoder(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(float(logits[i - 1, ids[i]]) for i in range(given, len(ids))))
    assert log_likelihoods(model, TEXTS, batch_size=2) == pytest.approx(expected, abs=1e-4)


def test_probabilities_add_up_to_one():
    """Without it a bound could pass for the likelihood: only the exact one sums to 1 over all continuations."""
    model = BlockDiffusionModel(tiny_model(vocab_size=6), Geometry(4, "shifted", "causal"), 5)
    texts = [([1, 2, 3, *more], 3) for more in itertools.product(range(5), repeat=2)]  # across a block border
    assert sum(map(math.exp, log_likelihoods(model, texts, batch_size=32))) == pytest.approx(1, abs=1e-5)
