"""One update of the weights."""

import pytest
import torch

from opdlm.config import OptimiserSettings
from opdlm.distill.update import Updater
from opdlm.errors import NonFiniteLossError, NonFiniteWeightsError
from opdlm.models.finite import all_finite
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


@pytest.mark.parametrize("way", ["the optimiser", "L2-SP"])
def test_weights_that_are_not_finite_stop_the_run(way: str) -> None:
    """Else the run would end well, with a model of NaN: a finite loss and gradient can still make them."""
    model = fresh_student()
    parameters = list(model.parameters())
    originals = [p.detach().clone() for p in parameters]
    updater = Updater(parameters, OptimiserSettings(learning_rate=1e-3, l2_sp=1.0), 1, originals)
    if way == "L2-SP":
        originals[1][0] = float("inf")
    else:
        updater.optimiser.param_groups[0]["weight_decay"] = 1e45
    for p in parameters:
        p.grad = torch.ones_like(p)
    with pytest.raises(NonFiniteWeightsError, match=r"after update 0; start again with a lower learning rate"):
        updater.update(1.0, [0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_weight_is_enough(bad: float, dtype: torch.dtype) -> None:
    """Else a single NaN among millions would pass; and large weights, whose squares overflow, would not."""
    weights = [torch.ones(7, 9, dtype=dtype), torch.full((5,), 1e38, dtype=dtype), torch.arange(3)]
    assert all_finite(weights)
    weights[0][3, 8] = bad
    assert not all_finite(weights)


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
