"""A plan follows from shapes and rates: what must be so whatever the rates are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_support import call, fails
from opdlm.config import ConvertSettings, settings_from
from opdlm.core.types import Geometry
from opdlm.distill import footprint, plan
from opdlm.distill.gpu_kinds import KINDS
from opdlm.distill.planning import Wanted, planned
from opdlm.errors import RecordError, UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.shapes import Decoder, without_weights
from opdlm.recipes import load_recipe
from rollouts import TOKENS
from support import MASK, tiny_config, tiny_model

H100 = KINDS["h100"]
SMALL = settings_from(ConvertSettings, load_recipe("paper-small"))
JOB = plan.Job(prompts=1280, prompt_tokens=100, response_tokens=400)
PARTS = {"gradient": 4e9, "checkpoint": 1e10}
DECODER = Decoder(parameters=10**9, body=9 * 10**8, head=10**8, embedding=10**8, layers=20, width=2048, cached=10**5)


def hours(gpus: int = 8, settings: ConvertSettings = SMALL, job: plan.Job = JOB, **rates: float) -> dict[str, float]:
    found = replace(plan.rates_of(H100, plan.Assumed(), gpus), **rates)
    return plan.hours(DECODER, settings, job, found, gpus, PARTS)


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"precision": "bfloat16"}], ids=str)
def test_memory_without_weights_is_memory_with_them(name: str, changes: dict[str, Any]) -> None:
    """Else a plan would give other numbers than `doctor` for the same model."""
    settings, shape = SMALL.model_copy(update=changes), footprint.Shape(2, 16, 32, 4)
    real = BlockDiffusionModel(tiny_model(name), Geometry(4), MASK)
    fake = BlockDiffusionModel(without_weights(tiny_config(name)), Geometry(4), MASK)
    expected, found = (footprint.estimate(model, TOKENS, settings, 4, shape) for model in (real, fake))
    for part in ("weights", "activation", "moment", "teacher", "copy", "head", "rollout_cache"):
        assert found[f"{part}_bytes"] == expected[f"{part}_bytes"], part


def test_the_head_is_no_activation() -> None:
    """Else each response token of a large vocabulary would seem to keep its logits, megabytes of them."""
    shape = footprint.Shape(1, 16, 4000, 1)
    kept = [
        footprint.estimate(
            BlockDiffusionModel(without_weights(tiny_config("qwen3", vocab_size=size)), Geometry(4), size - 1),
            TOKENS, SMALL, 4, shape,
        )["activation_bytes"]
        for size in (97, 50_000)
    ]  # fmt: skip
    assert kept[1] == pytest.approx(kept[0], rel=0.01)


def test_flops_are_those_of_the_papers_count_and_what_it_leaves_out() -> None:
    """Else the plan could forget a part. The paper: 2 N T of the teacher and 6 N T of the student, without rollouts and
    doubled rows; ours must be more, and not beyond what these add.
    """
    decoder, job = replace(DECODER, width=0), replace(JOB, prompt_tokens=1)  # no attention, nearly no prompts
    found = plan.flops(decoder, SMALL, job)
    paper = 8.0 * (decoder.body + decoder.head) * job.prompts * job.response_tokens
    assert 2.5 * paper < sum(found.values()) < 4 * paper
    recomputed = plan.flops(decoder, SMALL.model_copy(update={"gradient_checkpointing": True}), job)
    assert recomputed["student"] == pytest.approx(4 / 3 * found["student"])
    dense, flex = (plan.flops(DECODER, SMALL.model_copy(update={"attention": kind}), JOB) for kind in ("dense", "flex"))
    assert flex["student"] < dense["student"], "masked pairs are skipped"


def test_hours_follow_the_rates_and_the_gpus() -> None:
    """Else an assumption could be changed without the plan knowing, or GPUs that idle be counted as working."""
    assert hours(student=1e14)["student"] == pytest.approx(2 * hours(student=2e14)["student"])
    assert hours(forward_s=1.0)["rollouts"] == pytest.approx(10 * hours(forward_s=0.1)["rollouts"])
    assert hours(4)["student"] == pytest.approx(2 * hours(8)["student"])
    assert hours(64)["student"] == hours(8)["student"], "an update has 8 rows: 56 of 64 GPUs have none"
    more = SMALL.model_copy(update={"rows_per_update": 64, "prompts_per_rollout": 1024})
    assert hours(64, more)["student"] == pytest.approx(hours(8)["student"] / 8)
    assert hours(1)["exchange"] == 0
    assert hours(64)["exchange"] > hours(8)["exchange"], "between nodes it is slower"


def test_measured_rates_take_the_place_of_assumed_ones(tmp_path: Path) -> None:
    """Else a plan would say "measured" of what is assumed, or the other way round."""
    file = tmp_path / "gpu_mfu_qwen3-0.6b.json"
    rows = [{"metric": "student's FLOP/s", "ours": value} for value in (1e14, 3e14)]
    file.write_text(json.dumps({"rows": rows}))
    found = plan.rates_of(H100, plan.Assumed(mfu=0.5), 8, [file])
    assert (found.student, found.teacher) == (3e14, 0.5 * H100.flops)
    assert found.sources["student"] == f"measured: {file}"
    assert found.sources["teacher"].startswith("assumed: 50%")
    for text in ("{}", "[", json.dumps({"rows": [{"metric": "other", "ours": 1}]})):
        file.write_text(text)
        with pytest.raises(RecordError, match="give a"):
            plan.rates_of(H100, plan.Assumed(), 8, [file])


def test_a_folder_with_a_config_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else one would have to download gigabytes to learn that they do not fit."""
    tiny_config("qwen3").save_pretrained(tmp_path)
    words = ("doctor", tmp_path, "--plan", "--gpus", 64, "--kind", "h200", "--mean-response", 500)
    assert call(*map(str, words)) == 0
    text = capsys.readouterr().out
    assert "64 x h200" in text
    assert "Only 8 of 64 GPUs work" in text
    assert "assumed: 35% of" in text
    assert call(*map(str, words), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["response_tokens"] == 500 * plan.PAPER_PROMPTS
    assert found["hours"]["total"] == pytest.approx(sum(v for k, v in found["hours"].items() if k != "total"))
    ways = [way["bytes"] for way in found["ways"][:-1]]
    assert ways == sorted(ways, reverse=True), "each way saves more than the one before"


def test_mistakes_say_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a flag of a plan would be ignored in silence, or a wrong GPU end in a traceback."""
    tiny_config("qwen3").save_pretrained(tmp_path)
    for words, expected in (
        (("--gpus", "8"), "add --plan"),
        (("--plan", "--gpus", "0"), "above 0"),
        (("--plan", "--assume-mfu", "2"), "at most 1"),
        (("--plan", "--assume-forward-ms", "nan"), "a number above 0"),
        (("--plan", "--tokens-per-forward", "inf"), "a number above 0"),
        (("--plan", "--tokens-per-forward", "9"), "at most 4 tokens per forward"),
        (("--plan", "--lossless"), "--lossless says nothing to a plan"),
        (("--plan", "--block-size", "64"), "--block-size says nothing to a plan"),
        (("--plan", "--response-tokens", "7"), "--response-tokens says nothing to a plan"),
    ):
        assert expected in fails(capsys, "doctor", str(tmp_path), *words)
    for wanted in (Wanted(str(tmp_path), kind="h1000"), Wanted(str(tmp_path), recipe="lossless")):
        with pytest.raises(UsageError, match="choose"):
            planned(wanted)


def test_a_plan_with_an_adapter_trains_the_adapter_alone() -> None:
    """Else the recipe for one GPU would be said not to fit on one, and to take as long as full training."""
    full, adapter = (
        planned(Wanted("qwen3-4b", recipe="standard-large")),
        planned(Wanted("qwen3-4b", recipe="one-gpu-lora")),
    )
    parts = adapter["memory"]["parts"]
    assert parts["moment"] == 2 * parts["gradient"]
    assert parts["gradient"] < 0.05 * parts["weights"]
    assert parts["teacher"] == 0
    assert adapter["memory"]["replicated"] == parts["lora"] < full["memory"]["replicated"]
    assert adapter["hours"]["optimiser"] < 0.1 * full["hours"]["optimiser"]
    assert [way["name"] for way in adapter["ways"]][:2] == ["a row at a time", "and gradient checkpointing"]
