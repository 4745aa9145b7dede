"""bfloat16, the default on a GPU: every way to convert, and the commands that write; on the CPU, which casts alike."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import opdlm
from cli_support import call
from opdlm.distill.api import convert
from opdlm.errors import UsageError
from opdlm.models import low_bits
from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import load_autoregressive
from opdlm.tiny.families import evaluation_set
from opdlm.tiny.weights import ar_model_path, lossless_path, student_path
from runs import PROMPTS, SETTINGS, metrics, small_ar_model, weights

WITH_PEFT = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
WAYS: dict[str, dict[str, Any]] = {
    "opd": {},
    "all-states": {"states": "all"},
    "clean-text-term": {"clean_weight": 1.0},
    "paper": {"recipe": "paper-small"},
    "sft": {"method": "sft"},
    "offpolicy_kd": {"method": "offpolicy_kd"},
    "onpolicy_text": {"method": "onpolicy_text"},
    "lossless-mask": {"recipe": "lossless", "window": 3, "window_form": "mask", "lora_rank": 4},
    "lossless-noise": {"recipe": "lossless", "window": 3, "window_form": "noise", "lora_rank": 4},
    "lossless-with-drafts": {
        "recipe": "lossless",
        "window": 3,
        "window_form": "noise",
        "lora_rank": 4,
        "rollout_decoding": "verified",
    },
    "recomputed": {"gradient_checkpointing": True},
    "low-bit-teacher": {"recipe": "standard", "teacher_precision": "bfloat16"},
}


@pytest.mark.parametrize("way", [*WAYS, pytest.param("lora", marks=WITH_PEFT)])
def test_every_way_to_convert_works_in_bfloat16(way: str, tmp_path: Path) -> None:
    """Else a conversion that the CPU's tests know in float32 ends with a type error on the first GPU."""
    settings = SETTINGS | {"rollouts": 2, "eval_every": 1, "eval_count": 2} | WAYS.get(way, {"lora_rank": 2})
    base = small_ar_model(tmp_path)
    first = {}
    for precision in ("float32", "bfloat16"):
        convert(base, PROMPTS, tmp_path / precision, precision=precision, **settings)
        first[precision] = metrics(tmp_path / precision)[0]["loss"]
    assert first["bfloat16"] != first["float32"], "bfloat16 was not on"
    # The texts differ, too: a random model has near ties.
    assert first["bfloat16"] == pytest.approx(first["float32"], rel=0.2)


def test_a_lossless_model_in_bfloat16_drafts_as_well_and_writes_the_same_text() -> None:
    """Else the gate would be lost, or change the text, in the type that a CPU or GPU is fastest in."""
    problems = evaluation_set(10)
    texts, speeds = {}, {}
    for dtype in ("float32", "bfloat16"):
        model = opdlm.load(lossless_path(), "cpu", dtype)
        prompts = [encode_prompt(model.tokenizer, problem.prompt) for problem in problems]
        output = model.generate(prompts, max_new_tokens=48, decoding="verified")
        original = load_autoregressive(ar_model_path(), "cpu", dtype).generate(prompts, max_new_tokens=48)
        texts[dtype], speeds[dtype] = model.decode(output), output.tokens_per_forward
        assert texts[dtype] == model.decode(original)
        assert model.model.dtype == getattr(torch, dtype)
    assert speeds["bfloat16"] == pytest.approx(speeds["float32"], rel=0.05)
    assert speeds["float32"] > 2, "nothing was drafted, so nothing was tested"


def test_the_dtype_is_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a flag that says bfloat16 would load float32, or its numbers would not say what they are of."""
    assert opdlm.load(student_path(), "cpu").model.dtype == torch.float32
    assert opdlm.load(student_path(), "cpu", torch.float16).model.dtype == torch.float16
    with pytest.raises(UsageError, match="choose auto, float32"):
        opdlm.load(student_path(), "cpu", "int7")
    low = ("--device", "cpu", "--dtype", "bfloat16")
    assert call("generate", student_path(), "abc", "--max-new-tokens", "4", *low) == 0
    json_file = tmp_path / "out.json"
    words = ("--per-family", "1", "--max-new-tokens", "8", "--decoding", "sequential", "--json", json_file)
    assert call("eval", student_path(), "--against", ar_model_path(), *words, *low) == 0
    assert json.loads(json_file.read_text())["dtype"] == "bfloat16"
    assert "bfloat16" in capsys.readouterr().out


NARROWED = ("opd", "paper", "lossless-mask", "lossless-noise", pytest.param("lora", marks=WITH_PEFT))


@pytest.mark.parametrize("published", ["bfloat16", "float32"])
@pytest.mark.parametrize("way", NARROWED)
def test_frozen_weights_take_half_the_memory_and_change_nothing(
    way: str, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that was published in bfloat16 is held as it was: bit-equal losses, and a result in plain float32."""
    settings = (
        SETTINGS
        | {"rollouts": 2, "eval_every": 1, "eval_count": 2}
        | WAYS.get(way, {"lora_rank": 2, "gradient_checkpointing": True})
    )
    settings |= {"precision": "bfloat16", "optimiser": {"l2_sp": 0.0}}
    base = small_ar_model(tmp_path)
    if published == "bfloat16":
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        model.float().save_pretrained(base)
    narrowed: list[int] = []
    narrow = low_bits.narrow_frozen

    def counting(model: PreTrainedModel) -> None:
        narrow(model)
        narrowed.append(sum(p.numel() for p in model.parameters() if p.dtype == torch.bfloat16))

    monkeypatch.setattr(low_bits, "narrow_frozen", counting)
    convert(base, PROMPTS, tmp_path / "held", **settings)
    body = sum(one.numel() for name, one in weights(tmp_path / "held").items() if name.endswith("proj.weight"))
    assert narrowed == [body if published == "bfloat16" else 0]
    monkeypatch.setattr(low_bits, "narrow_frozen", lambda model: None)
    convert(base, PROMPTS, tmp_path / "cast", **settings)
    assert metrics(tmp_path / "held") == metrics(tmp_path / "cast")
    for file in {path.name for path in (tmp_path / "cast" / "model").glob("*.safetensors")}:
        held, cast = (load_file(tmp_path / run / "model" / file) for run in ("held", "cast"))
        assert held.keys() == cast.keys()
        assert all(torch.equal(held[name], cast[name]) and held[name].dtype == torch.float32 for name in held)
