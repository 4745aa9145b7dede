"""Weights and moments in fewer bits: what they hold, and that a run with them can be cut and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from opdlm.config import DistillSettings, OptimiserSettings, settings_from
from opdlm.distill.api import convert, resume
from opdlm.distill.update import Updater
from opdlm.errors import ConfigError, MissingExtraError
from opdlm.models import low_bits
from runs import PROMPTS, SETTINGS, metrics, weights
from support import tiny_model, tiny_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}


def has_bitsandbytes() -> bool:
    try:
        low_bits.bitsandbytes()
    except MissingExtraError:
        return False
    return True


with_bitsandbytes = pytest.mark.skipif(
    not has_bitsandbytes(), reason="needs bitsandbytes: pip install 'opdlm[low-bits]'"
)
PLAIN = SETTINGS | {"recipe": "standard"}  # small models get L2-SP, whose originals are the teacher


@torch.no_grad()
@pytest.mark.parametrize(
    ("precision", "most"), [("bfloat16", 0.01), pytest.param("4bit", 0.2, marks=with_bitsandbytes)]
)
def test_a_reduced_teacher_says_nearly_the_same(precision: Any, most: float) -> None:
    """Else the student would learn from another model, or the memory would not be saved at all."""
    plain, made = (tiny_model("qwen3", initializer_range=0.05, **WIDE) for _ in range(2))
    held = {name: b.clone() for name, b in made.named_buffers()}
    low_bits.reduced(made.requires_grad_(False), precision)
    assert all(p.dtype in (torch.bfloat16, torch.uint8) for p in made.parameters())
    assert all(torch.equal(held[name], b) for name, b in made.named_buffers()), "rotary frequencies lost digits"
    ids = torch.arange(3, 27)[None]
    expected = plain(input_ids=ids).logits.log_softmax(-1)
    found = made(input_ids=ids).logits.float().log_softmax(-1)
    assert 0 < float((expected.exp() * (expected - found)).sum(-1).mean()) < most
    size = sum(p.numel() * p.element_size() for p in made.parameters())
    whole = sum(4 * p.numel() for p in plain.parameters())
    assert size <= {"bfloat16": 0.5, "4bit": 0.25}[precision] * whole


@with_bitsandbytes
def test_moments_in_8_bits_train_as_in_32() -> None:
    """Else `--optimiser.moments 8bit` would learn something else, or keep float32 moments in silence."""
    moved = []
    for moments in ("float32", "8bit"):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(64, 128))
        start = weight.detach().clone()
        updater = Updater([weight], OptimiserSettings(learning_rate=1e-3, moments=moments), 20)
        for _ in range(10):
            weight.grad = torch.randn(64, 128)
            updater.update(1.0, [0])
        moved.append(weight.detach() - start)
    assert float(torch.cosine_similarity(*(one.flatten() for one in moved), 0)) > 0.99
    held = [v for v in updater.optimiser.state[weight].values() if isinstance(v, torch.Tensor)]
    assert sum(v.nbytes for v in held if v.shape == weight.shape) == 2 * weight.numel()


@pytest.mark.parametrize(
    "settings",
    [
        {"teacher_precision": "bfloat16"},
        pytest.param({"teacher_precision": "4bit"}, marks=with_bitsandbytes),
        pytest.param({"optimiser": {**SETTINGS["optimiser"], "moments": "8bit"}}, marks=with_bitsandbytes),
    ],
    ids=str,
)
def test_a_run_is_resumed_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    """Else quantised moments would be restored as something else, or the teacher be made of the trained student."""
    tiny_model("qwen3", initializer_range=0.3, **WIDE).save_pretrained(tmp_path / "ar_model")
    tiny_tokenizer().save_pretrained(tmp_path / "ar_model")

    def stop(step: Any) -> None:
        if step.rollout == 3:
            raise InterruptedError

    chosen = PLAIN | settings
    convert(tmp_path / "ar_model", PROMPTS, tmp_path / "whole", **chosen)
    with pytest.raises(InterruptedError):
        convert(tmp_path / "ar_model", PROMPTS, tmp_path / "cut", on_step=stop, **chosen)
    resume(tmp_path / "cut")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert {w.dtype for w in found.values()} == {torch.float32}


def test_contradictions_and_a_missing_package_say_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else an adapter would train against a teacher that is not there, or an hour of reading end in an ImportError."""
    for other in ({"lora_rank": 4}, {"optimiser": {"l2_sp": 1.0}}):
        with pytest.raises(ConfigError, match="leave teacher_precision out"):
            settings_from(DistillSettings, {"teacher_precision": "bfloat16", **other})
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    tiny_model().save_pretrained(tmp_path / "ar_model")
    tiny_tokenizer().save_pretrained(tmp_path / "ar_model")
    for settings in ({"teacher_precision": "4bit"}, {"optimiser": {"moments": "8bit"}}):
        with pytest.raises(MissingExtraError, match=r"opdlm\[low-bits\]"):
            convert(tmp_path / "ar_model", PROMPTS, tmp_path / "run", **(PLAIN | settings))
        assert not (tmp_path / "run").exists()


def test_only_frozen_weights_that_bfloat16_has_are_narrowed() -> None:
    """Else a lossless conversion would change the model that it promises to keep, or training would lose digits."""
    model = tiny_model("qwen3")
    layers = low_bits.linear_layers(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    trained, odd, *others = layers.values()
    odd.weight.data[0, 0] = 1 + 2**-20
    model.requires_grad_(False)
    trained.weight.requires_grad_(True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    low_bits.narrow_frozen(model)
    narrowed = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert narrowed == {f"{name}.weight" for name, layer in layers.items() if layer in others}
    wide = low_bits.widened(model)
    assert all(torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in wide.named_parameters())
    assert {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16} == narrowed, "a copy, not this"
