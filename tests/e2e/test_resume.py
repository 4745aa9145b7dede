"""A run that was killed and resumed ends bit for bit as if nothing had happened."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opdlm.cli.main import main
from opdlm.distill.api import convert, resume
from opdlm.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    NonFiniteWeightsError,
    OutputExistsError,
    PromptsError,
    RunInUseError,
    UsageError,
)
from opdlm.records import checksums
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder
from runs import PROMPTS, SETTINGS, metrics, small_ar_model, weights


class PowerCut(Exception):  # noqa: N818
    """The machine goes off."""


@pytest.fixture
def ar_model(tmp_path: Path) -> str:
    return small_ar_model(tmp_path)


def cut_at(rollout: int):
    def on_step(metrics: StepMetrics) -> None:
        if metrics.rollout == rollout:
            raise PowerCut

    return on_step


@pytest.mark.parametrize(
    ("cut", "settings"),
    [(1, {}), (3, {}), (4, {}), (3, {"lora_rank": 2}), (3, {"gradient_checkpointing": True, "states": "all"})],
    ids=["before the first checkpoint", "after one", "at one", "lora", "checkpointing"],
)
def test_resumed_is_uninterrupted(ar_model: str, tmp_path: Path, cut: int, settings: dict[str, Any]) -> None:
    """Else a machine that goes off would cost the run, or change its result without anyone noticing."""
    chosen = SETTINGS | settings
    convert(ar_model, PROMPTS, tmp_path / "whole", **chosen)
    with pytest.raises(PowerCut):
        convert(ar_model, PROMPTS, tmp_path / "cut", on_step=cut_at(cut), **chosen)
    assert not (tmp_path / "cut" / "model").exists()
    resume(tmp_path / "cut")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    before = load_file(Path(ar_model) / "model.safetensors")
    moved = (before["model.layers.0.mlp.up_proj.weight"] - found["model.layers.0.mlp.up_proj.weight"]).abs().max()
    assert moved > 1e-4, "nothing was trained, so nothing was tested"
    assert {p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()} == {"rollout-000004", "rollout-000005"}


def test_a_killed_evaluation_loses_no_metrics(ar_model: str, tmp_path: Path) -> None:
    """Else the line of the checkpoint during whose evaluation the run was killed would be missing for ever."""

    def evaluate(_model: object) -> dict[str, Any]:
        raise PowerCut

    with pytest.raises(PowerCut):
        convert(ar_model, PROMPTS, tmp_path / "run", evaluate=evaluate, **SETTINGS)
    resume(tmp_path / "run")
    assert [line["rollout"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_gradient_checkpointing_is_switched_on(ar_model: str, tmp_path: Path) -> None:
    """Else the setting would save no memory; with it, the weights are those without."""
    convert(ar_model, PROMPTS, tmp_path / "plain", **SETTINGS)
    calls: list[str] = []

    def watch(trainer: Any, _difference: float) -> None:
        layer = trainer.pair.student.model.get_submodule("model.layers.0.mlp")
        layer.register_forward_pre_hook(lambda *_: calls.append("grad" if torch.is_grad_enabled() else ""))

    convert(ar_model, PROMPTS, tmp_path / "saving", on_start=watch, gradient_checkpointing=True, **SETTINGS)
    updates = metrics(tmp_path / "saving")[-1]["updates"]
    assert calls.count("grad") == 2 * updates, "each update computes the layer a second time"
    expected, found = weights(tmp_path / "plain"), weights(tmp_path / "saving")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_runs_are_not_overwritten_or_invented(ar_model: str, tmp_path: Path) -> None:
    """Else a second run would destroy the first, or a misspelt folder would be resumed as an empty run."""
    convert(ar_model, PROMPTS, tmp_path / "run", **(SETTINGS | {"rollouts": 1}))
    before = weights(tmp_path / "run")
    with pytest.raises(OutputExistsError):
        convert(ar_model, PROMPTS, tmp_path / "run", **SETTINGS)
    with pytest.raises(CheckpointError):
        resume(tmp_path / "nun")
    with pytest.raises(UsageError, match="--output"):
        convert(ar_model, PROMPTS, "", **SETTINGS)
    resume(tmp_path / "run")  # a finished run stays as it is
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path / "run").items())


def test_a_run_of_an_earlier_version_resumes(ar_model: str, tmp_path: Path) -> None:
    """Else an upgrade would cost every run that is under way: records without a version, settings with old names."""
    chosen = SETTINGS | {"optimiser": SETTINGS["optimiser"] | {"l2_sp": 2.0}, "rollout_decoding": "static:2"}
    convert(ar_model, PROMPTS, tmp_path / "whole", **chosen)
    with pytest.raises(PowerCut):
        convert(ar_model, PROMPTS, tmp_path / "cut", on_step=cut_at(3), **chosen)
    run = RunFolder(tmp_path / "cut")
    config = run.config.read_text()
    assert "l2_sp" in config
    assert "tokens_per_step" in config
    run.config.write_text(config.replace("l2_sp", "pull_to_original").replace("tokens_per_step", "tokens_per_round"))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    run.metrics.write_text("".join(json.dumps(without_version(line)) + "\n" for line in lines))
    checkpoint = run.latest()
    assert checkpoint is not None
    state = run.load_state(checkpoint)
    torch.save(state | {"line": without_version(state["line"])}, checkpoint / "training_state.pt")
    (checkpoint / checksums.FILE).unlink()
    resume(tmp_path / "cut")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def without_version(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("version", "evaluation")}


def test_a_run_is_not_resumed_twice_at_once(ar_model: str, tmp_path: Path) -> None:
    """Else both would end well, with metrics 1, 2, 3, 3, 4, 4 and weights of neither."""
    run = tmp_path / "run"
    refused: list[str] = []

    def resume_again(_metrics: StepMetrics) -> None:
        with pytest.raises(RunInUseError) as error:
            resume(run)
        refused.append(str(error.value))

    convert(ar_model, PROMPTS, run, on_step=resume_again, **SETTINGS)
    assert len(refused) == 5
    assert [line["rollout"] for line in metrics(run)] == [1, 2, 3, 4, 5]
    resume(run)


CONSTANT = {"learning_rate": 1e-3, "final_learning_rate": 1e-3, "warmup_updates": 0}


def test_a_finished_run_goes_on_with_more_rollouts(ar_model: str, tmp_path: Path) -> None:
    """Else who trained too little would have to begin again. At a constant rate it is the longer run, bit for bit."""
    chosen = SETTINGS | {"optimiser": CONSTANT, "rollouts": 3}
    convert(ar_model, PROMPTS, tmp_path / "whole", **(chosen | {"rollouts": 5}))
    convert(ar_model, PROMPTS, tmp_path / "run", **chosen)
    notes = list[str]()
    resume(tmp_path / "run", on_note=notes.append)
    assert "all 3 rollouts are done already; a larger --rollouts goes on" in notes
    resume(tmp_path / "run", rollouts=5)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [line["rollout"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
    run = RunFolder(tmp_path / "run")
    assert run.settings().rollouts == 5
    assert json.loads(run.history.read_text()) == {"version": 1, "rollouts_begun": 3, "changed": {"rollouts": [3, 5]}}


def test_other_settings_change_on_resume(ar_model: str, tmp_path: Path) -> None:
    """Else a rate that was too high would cost the run; and a refused change must leave the run as it is."""
    with pytest.raises(PowerCut):
        convert(ar_model, PROMPTS, tmp_path / "run", on_step=cut_at(2), **(SETTINGS | {"optimiser": CONSTANT}))
    run = RunFolder(tmp_path / "run")
    before = run.config.read_text()
    for changes, message in (
        ({"seed": 1}, "keeps its own seed; .*may change rollouts"),
        ({"response_length": {"end": 20}}, "response_length.end"),
        ({"optimiser": {"l2_sp": 1}}, "optimiser.l2_sp"),
        ({"rollouts": 1}, "2 are done or under way"),
        ({"rollouts": None}, "give it"),
        ({"optimiser": {"learning_rate": 2}}, "less than or equal to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            resume(run.path, **changes)
    assert run.config.read_text() == before
    assert not run.history.exists()
    slower = {"learning_rate": 1e-4, "final_learning_rate": 1e-4}
    resume(run.path, optimiser=slower, save_every_rollouts=1, rows_per_micro_batch=1, device="cpu")
    assert [line["learning_rate"] for line in metrics(run.path)] == [1e-3, 1e-3, 1e-4, 1e-4, 1e-4]
    assert run.settings().optimiser.beta1 == 0.9
    changed = json.loads(run.history.read_text())["changed"]
    assert changed["optimiser.learning_rate"] == [1e-3, 1e-4]
    assert changed.keys() == {f"optimiser.{name}" for name in slower} | {"save_every_rollouts", "rows_per_micro_batch"}


def test_the_advice_after_a_diverged_run_works(ar_model: str, tmp_path: Path) -> None:
    """Else "resume with a lower rate" would be advice that nobody can follow."""

    def ruin(trainer: Any, _difference: float) -> None:
        def after(line: StepMetrics) -> None:
            if line.rollout == 3:
                next(trainer.pair.student.parameters()).data.fill_(float("inf"))

        trainer.on_step = after

    with pytest.raises((NonFiniteLossError, NonFiniteWeightsError)) as error:
        convert(ar_model, PROMPTS, tmp_path / "run", on_start=ruin, **SETTINGS)
    checkpoint = tmp_path / "run" / "checkpoints" / "rollout-000002"
    words = str(error.value).partition("the last good checkpoint is ")[2]
    assert words == (
        f"{checkpoint}; continue with a lower rate: "
        f"opdlm convert --resume {tmp_path / 'run'} --optimiser.learning-rate RATE"
    )
    assert main(["convert", "--resume", str(tmp_path / "run"), "--optimiser.learning-rate", "1e-4"]) == 0
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_other_prompts_are_refused_and_any_folder_will_do(
    ar_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a changed file would be trained on in silence, and relative paths would be looked for elsewhere."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    with pytest.raises(PowerCut):
        convert("ar_model", "prompts.txt", "run", on_step=cut_at(3), **SETTINGS)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "another"]))
    with pytest.raises(PromptsError, match=r"not those that .* was started with"):
        resume("../run")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    assert resume("../run").is_dir()


def test_a_run_with_a_list_of_prompts_can_be_moved(ar_model: str, tmp_path: Path) -> None:
    """Else its own copy of the prompts would be looked for where it was."""
    with pytest.raises(PowerCut):
        convert(ar_model, PROMPTS, tmp_path / "run", on_step=cut_at(3), **SETTINGS)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert resume(tmp_path / "moved") == tmp_path / "moved" / "model"


def test_sizes_that_no_model_has_are_refused_or_begin(ar_model: str, tmp_path: Path) -> None:
    """Else a rank or a number of rollouts with too many zeros would hang before the first line."""
    with pytest.raises(ConfigError, match=r"lora_rank: 100000 .* at most 16"):
        convert(ar_model, PROMPTS, tmp_path / "rank", lora_rank=100000, **SETTINGS)
    with pytest.raises(PowerCut):
        convert(ar_model, PROMPTS, tmp_path / "long", on_step=cut_at(1), **(SETTINGS | {"rollouts": 10**9}))
    with pytest.raises(ConfigError, match="rollouts"):
        convert(ar_model, PROMPTS, tmp_path / "longer", **(SETTINGS | {"rollouts": 10**10}))
