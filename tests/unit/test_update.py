"""One update of the weights."""

import pytest
import torch

from opdlm.config import OptimiserSettings
from opdlm.distill.update import Updater
from opdlm.errors import NonFiniteLossError
from rollouts import fresh_student, random_prompts


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    """Else one bad row would turn all weights into NaN."""
    model = fresh_student()
    updater = Updater(list(model.parameters()), OptimiserSettings(), 1)
    before = [p.clone() for p in model.parameters()]
    for loss, gradient in ((float("nan"), 1.0), (1.0, float("inf"))):
        for p in updater.parameters:
            p.grad = torch.full_like(p, gradient)
        with pytest.raises(NonFiniteLossError, match=r"rows \[4, 5\]"):
            updater.update(loss, [4, 5])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert updater.done == 0


def test_an_update_is_seen_at_once_in_mixed_precision() -> None:
    """Else autocast, which keeps low-precision copies of the weights, would use those of the rollout's first update."""
    model = fresh_student()
    ids = torch.tensor(random_prompts((8,)))
    updater = Updater(list(model.parameters()), OptimiserSettings(learning_rate=0.1, warmup_updates=0), 1)
    with torch.autocast("cpu", torch.bfloat16):
        before = model.causal_hidden(ids)
        before.float().pow(2).sum().backward()
        updater.update(1.0, [0])
        after = model.causal_hidden(ids)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.causal_hidden(ids)
    assert (after - before).abs().max() > 0.1
    assert torch.equal(after, expected)


def test_the_pull_takes_back_what_training_does_not_need() -> None:
    """Else the setting would do nothing, or pull towards zero as a plain weight decay does.

    One update with zero gradients: AdamW stands still, and the distance to the original shrinks by rate * l2_sp.
    """
    model = fresh_student()
    parameters = list(model.parameters())
    originals = [p.detach() + 1.0 for p in parameters]
    settings = OptimiserSettings(learning_rate=1e-2, warmup_updates=0, l2_sp=5.0)
    updater = Updater(parameters, settings, 1, originals)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in parameters]
    updater.update(0.0, [0])
    for p, start, original in zip(parameters, before, originals, strict=True):
        torch.testing.assert_close(original - p.detach(), (original - start) * 0.95, atol=1e-5, rtol=1e-4)
