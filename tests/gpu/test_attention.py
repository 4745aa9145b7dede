"""FlexAttention trains the same model as a dense mask, in sequences that hold other documents."""

import pytest
import torch

from gpu_support import DEVICE, LARGE, model_on
from opdlm.config import DistillSettings, SequentialDecoding
from opdlm.core.types import Geometry
from opdlm.distill.losses import divergence_loss, log_divergence
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from rollouts import TOKENS, random_prompts, states_of, written
from support import assert_close

TOLERANCE = 2e-4 if LARGE else 2e-5  # of the gradient's norm; float32, summed in another order


def loss_and_gradient(attention: str, checkpointing: bool) -> tuple[float, torch.Tensor]:
    """Of a training pass over rows of different lengths, teacher and student alike with `attention`."""
    model = model_on(geometry=Geometry(4, "shifted", "causal"))
    teacher = model_on(seed=1)
    # Sampled on the CPU's copy, so that both have the same text; untrained models write until the cap.
    rollout, _ = written(model_on(torch.device("cpu")), random_prompts((40, 3, 4, 6, 9)))
    rollout = rollout.to(DEVICE)
    for one in (model, teacher):
        one.model.set_attn_implementation(attention)
    if checkpointing:
        model.checkpoint_activations()
    seeds = torch.arange(len(rollout.length), device=DEVICE)
    states = states_of(rollout, model.geometry, "all", seeds, capacity=model.packing_capacity)
    pair = Pair.of(model, Teacher(teacher), TOKENS)
    model.train()
    total = divergence_loss(pair, log_divergence(DistillSettings()), states, rollout, pair.teacher.targets(rollout))
    total.total.backward()
    gradients = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    assert (states.input_ids.shape[0] == 1) == (attention == "flex_attention"), "flex packs all into one sequence"
    return float(total.total.detach()), torch.cat(gradients)


def assert_same_training(checkpointing: bool) -> None:
    loss, gradient = loss_and_gradient("flex_attention", checkpointing)
    expected_loss, expected = loss_and_gradient("sdpa", checkpointing)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert float((gradient - expected).norm()) <= TOLERANCE * float(expected.norm())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on purpose
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own tracing
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flex_is_dense_uncompiled(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `attention = flex` would train under another mask, or pack documents that then see each other."""
    from torch.nn.attention import flex_attention as kernel
    from transformers.integrations import flex_attention as integration

    def uncompiled(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **settings: object) -> torch.Tensor:
        del settings["training"]
        return kernel.flex_attention(query, key, value, **settings)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", uncompiled)
    # On a CPU torch refuses gradients before it looks whether the call is compiled; uncompiled they work there too.
    monkeypatch.setattr(kernel, "_validate_device", lambda query, key, value: None)
    assert_same_training(checkpointing)


@pytest.mark.gpu("torch compiles no backward pass of FlexAttention on a CPU, so the compiled kernel is not seen")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flex_is_dense_compiled(checkpointing: bool) -> None:
    """Else the kernel that training on a GPU really runs would be one that no test has seen."""
    assert_same_training(checkpointing)


@torch.no_grad()
def test_decoding_attends_densely() -> None:
    """Else each denoising step of a rollout would make a block mask for a handful of queries, and compile again."""
    texts = []
    for attention in ("sdpa", "flex_attention"):
        model = model_on()
        model.model.set_attn_implementation(attention)
        rollout, visits = written(model, decoding=SequentialDecoding(), temperature=0.0)
        assert model.model.config._attn_implementation == attention
        texts.append((rollout, visits))
    (one, seen), (other, seen_too) = texts
    assert torch.equal(one.input_ids, other.input_ids)
    for key, logits in seen.items():
        assert_close(logits, seen_too[key])
