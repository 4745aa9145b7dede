"""Several processes end together, and what they leave goes on with any number of processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opdlm.distill.api import resume
from opdlm.records.run_folder import RunFolder
from processes import ProcessFailedError, gradients, in_processes, loaded, struck
from runs import PROMPTS, small_ar_model

SETTINGS: dict[str, Any] = {
    "prompts": PROMPTS,
    "recipe": "standard",
    "device": "cpu",
    "threads": 1,
    "rollouts": 3,
    "prompts_per_rollout": 4,
    "rows_per_update": 2,
    "save_every_rollouts": 1,
    "keep_checkpoints": 10,
    "response_length": {"start": 12, "end": 12, "rollouts": 0},
    "optimiser": {"learning_rate": 1e-3, "warmup_updates": 2},
}
KINDS: dict[str, dict[str, Any]] = {"all weights": {}, "lossless": {"recipe": "lossless", "lora_rank": 2, "window": 3}}


@pytest.fixture(scope="module")
def ar_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_ar_model(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def alone(ar_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole runs of one process."""
    runs = {kind: tmp_path_factory.mktemp("alone") / "run" for kind in KINDS}
    conversions = [(runs[kind], SETTINGS | KINDS[kind] | {"model": ar_model}) for kind in KINDS]
    (answer,) = in_processes(1, gradients, *conversions)
    assert not isinstance(answer, Exception), answer
    return runs


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in (run / "model").glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same(run: Path, alone: Path) -> None:
    """Up to rounding."""
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(run)[name], value, atol=2e-5, rtol=1e-4)
    ours, theirs = RunFolder(run).logged(), RunFolder(alone).logged()
    assert [one.tokens_trained for one in ours] == [one.tokens_trained for one in theirs]
    assert [one.loss for one in ours] == pytest.approx([one.loss for one in theirs], rel=1e-4)


def cut(alone: Path, run: Path, rollouts: int) -> Path:
    """A copy of the run as it was after so many rollouts; its newest checkpoint."""
    shutil.copytree(alone, run)
    shutil.rmtree(run / "model")
    for checkpoint in (run / "checkpoints").iterdir():
        if RunFolder.rollouts_begun(checkpoint) > rollouts:
            shutil.rmtree(checkpoint)
    latest = RunFolder(run).latest()
    assert latest is not None
    return latest


@pytest.mark.parametrize(
    ("kind", "count", "sharding"), [("all weights", 2, "none"), ("all weights", 3, "full"), ("lossless", 2, "full")]
)
def test_a_run_goes_on_with_another_number_of_processes(
    alone: dict[str, Path], tmp_path: Path, kind: str, count: int, sharding: str
) -> None:
    """Else a run could not be taken to another machine. What is loaded is what was saved, bit by bit."""
    state = RunFolder.load_state(cut(alone[kind], tmp_path / "run", 1))
    answers = in_processes(count, loaded, tmp_path / "run", {"sharding": sharding})
    for answer in answers:
        assert not isinstance(answer, Exception), answer
        found = answer["optimiser"]
        assert found.keys() == state["updater"]["optimiser"]["state"].keys()
        for index, values in state["updater"]["optimiser"]["state"].items():
            assert all(torch.equal(found[index][name], value) for name, value in values.items())
    if kind == "all weights":
        saved = load_file(tmp_path / "run/checkpoints/rollout-000001/model.safetensors")
        saved = {f"model.{name}": value for name, value in saved.items()}
    else:
        saved = {f"gate.{name}": value for name, value in state["gate"].items()}
    assert saved
    assert all(torch.equal(answers[-1]["weights"][name], value) for name, value in saved.items())
    assert_same(tmp_path / "run", alone[kind])


@pytest.mark.parametrize(
    ("place", "call", "sharding"), [("writing", 14, "full"), ("pass", 2, "none"), ("update", 1, "full")]
)
def test_an_interruption_of_one_process_ends_all_with_a_checkpoint(
    ar_model: str, alone: dict[str, Path], tmp_path: Path, place: str, call: int, sharding: str
) -> None:
    """Else Ctrl-C would leave processes that wait for each other, or cost what was done since the last checkpoint."""
    settings = SETTINGS | {"model": ar_model, "sharding": sharding, "save_every_rollouts": 100}
    answers = in_processes(2, struck, tmp_path / "run", settings, 1, signal.SIGINT, place, call)
    assert all("KeyboardInterrupt" in str(answer) for answer in answers), answers
    checkpoint = RunFolder(tmp_path / "run").latest()
    assert checkpoint is not None
    assert place == "writing" or checkpoint.name == "rollout-000000-and-1-updates", "the text is kept"
    answers = in_processes(3, gradients, (tmp_path / "run", {}))
    assert not any(isinstance(answer, Exception) for answer in answers), answers
    assert_same(tmp_path / "run", alone["all weights"])


@pytest.mark.parametrize(
    ("place", "call", "sharding"), [("writing", 14, "none"), ("pass", 2, "full"), ("update", 2, "none")]
)
def test_the_others_end_where_one_is_killed(
    ar_model: str, tmp_path: Path, place: str, call: int, sharding: str
) -> None:
    """Else they would wait for it for ever."""
    settings = SETTINGS | {"model": ar_model, "sharding": sharding}
    first, second = in_processes(2, struck, tmp_path / "run", settings, 1, signal.SIGKILL, place, call)
    assert str(second) == "killed"
    assert isinstance(first, ProcessFailedError)
    assert "RankFailedError" in str(first)
    assert f"opdlm convert --resume {tmp_path / 'run'}" in str(first)


# --- the true commands --------------------------------------------------------------------------------------------


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


def launch(launcher: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "opdlm", "convert", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def flags(ar_model: str, output: Path, rollouts: int) -> list[str]:
    prompts = output.with_suffix(".txt")
    prompts.write_text("\n".join(PROMPTS) + "\n")
    sizes = "--prompts-per-rollout 4 --rows-per-update 2 --response-length.start 12 --response-length.end 12"
    words = f"--recipe standard --device cpu --save-every-rollouts 1 --rollouts {rollouts} {sizes}".split()
    return [ar_model, "--prompts", str(prompts), "--output", str(output), *words]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "sharding"), [("torchrun", "full"), ("accelerate", "none")])
def test_the_launchers_start_a_conversion(ar_model: str, tmp_path: Path, launcher: str, sharding: str) -> None:
    """Else the commands of the documentation would not work. One process prints."""
    process = launch(launcher, *flags(ar_model, tmp_path / "run", 1), "--sharding", sharding)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("the model is") == 1
    assert output.count("identity check passed") == 1
    assert "2 processes" in output
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_mistake_is_told_once(ar_model: str, tmp_path: Path) -> None:
    """Else each process would say the same."""
    words = flags(ar_model, tmp_path / "run", 1)
    words[2] = str(tmp_path / "missing.txt")
    _, errors = (process := launch("torchrun", *words)).communicate(timeout=300)
    assert process.returncode != 0
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1, errors
    assert not (tmp_path / "run").exists()


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    for _ in range(3000):
        if RunFolder(run).latest() is not None:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("there is no checkpoint")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the launcher's children")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_or_ctrl_c_ends_the_command(ar_model: str, tmp_path: Path, how: signal.Signals) -> None:
    """Else a lost GPU would leave the others waiting. SIGKILL goes to one process, Ctrl-C to the launcher."""
    run = tmp_path / "run"
    process = launch("torchrun", *flags(ar_model, run, 10_000))
    wait_for_checkpoint(process, run)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[1]) if how == signal.SIGKILL else process.pid, how)
    output, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    if how == signal.SIGKILL:
        assert "error: another process of this run is gone; continue from the newest checkpoint: " in errors
    else:
        assert output.count("stopped; the newest checkpoint is") == 1, output + errors
    begun = RunFolder.rollouts_begun(RunFolder(run).latest())
    resume(run, rollouts=begun + 1)
    assert len(RunFolder(run).logged()) == begun + 1
