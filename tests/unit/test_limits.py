"""Proposals under masks, by hand."""

import math

import torch

from opdlm.core.limits import limited, limited_proposals, unpacked
from support import assert_close


def test_bits_stand_for_tokens() -> None:
    """Else a mask would allow other tokens, above all the last of a word, whose bit is the sign."""
    allowed = [0, 31, 32, 63, 69]
    bits = torch.zeros(1, 1, 3, dtype=torch.int64)
    for token in allowed:
        bits[0, 0, token // 32] |= 1 << (token % 32)
    found = unpacked(bits.to(torch.uint32).view(torch.int32), 70)
    assert found.shape == (1, 1, 70)
    assert found[0, 0].nonzero()[:, 0].tolist() == allowed


def test_confidence_behind_a_gap() -> None:
    """Else a rule would take what the grammar forces behind a guess for as sure as if the guess were known."""
    probability = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.4, 0.4, 0.2]]])
    allowed = torch.tensor([[[1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 1]]]).bool()
    token = torch.tensor([[0, 1, 1, 2]])
    masked = torch.tensor([[True, True, False, True]])
    logits = probability.log()
    seen = limited_proposals(logits, limited(logits, allowed), token, masked)
    first = 0.5 / 0.75
    expected = [first, first * 1.0, 0.6, max(0.2, first * 1.0 * 0.2 / 0.6)]
    assert_close(seen.confidence[0, [0, 1, 3]], torch.tensor([expected[0], expected[1], expected[3]]))
    assert_close(seen.log_probability[0, 0, :2].exp(), torch.tensor([2 / 3, 1 / 3]))
    assert_close(seen.log_probability[0, 1].exp(), probability[0, 1])
    assert torch.isfinite(seen.entropy()).all()
    assert_close(seen.entropy()[0, 0], torch.tensor(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))


def test_no_bias_brings_a_token_back() -> None:
    """Else `logit_bias` could write what the grammar rules out."""
    within = limited(torch.zeros(1, 1, 2), torch.tensor([[[True, False]]]))
    assert int((within + torch.tensor([-1e30, 1e30])).argmax()) == 0
