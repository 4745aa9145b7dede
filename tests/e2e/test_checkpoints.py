"""Checkpoints of whole runs: written beside the training, verified before they are used, the best one kept."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opdlm
from cli_support import call, fails
from opdlm.distill import api, loop
from opdlm.distill.api import convert, resume
from opdlm.distill.validation import Validator
from opdlm.errors import CheckpointError, ConfigError, StorageError
from opdlm.evals.original import original_of
from opdlm.records import checksums
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder
from opdlm.records.worth import Validation
from runs import PROMPTS, SETTINGS, metrics, small_ar_model, weights

KINDS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "lora": {"lora_rank": 2},
    "lossless": {
        "method": "lossless",
        "lora_rank": 2,
        "window": 3,
        "rollout_decoding": "verified:0",
        "decoding": "verified",
    },
}


@pytest.fixture(scope="module")
def ar_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_ar_model(tmp_path_factory.mktemp("checkpoints"))


def cut_at(rollout: int) -> Callable[[StepMetrics], None]:
    def on_step(metrics: StepMetrics) -> None:
        if metrics.rollout == rollout:
            raise KeyboardInterrupt

    return on_step


def tensors(state: Any) -> list[torch.Tensor]:
    """All in a nested state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return [one for name in sorted(state, key=str) for one in tensors(state[name])]
    return [one for part in state for one in tensors(part)] if isinstance(state, list | tuple) else []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_later_is_the_moment(
    kind: str, ar_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a checkpoint would hold weights or moments of updates that came while it was written."""
    settings = SETTINGS | KINDS[kind]
    convert(ar_model, PROMPTS, tmp_path / "waiting", async_save=False, **settings)
    go, save = threading.Event(), api.save_checkpoint
    done: list[int] = []

    def late(*args: Any, **kwargs: Any) -> None:
        assert go.wait(60)
        save(*args, **kwargs)

    def on_step(metrics: StepMetrics) -> None:
        done.append(metrics.rollout)
        if metrics.rollout == 3:  # one rollout after the checkpoint
            assert RunFolder(tmp_path / "beside").latest() is None
            go.set()

    monkeypatch.setattr(api, "save_checkpoint", late)
    convert(ar_model, PROMPTS, tmp_path / "beside", on_step=on_step, keep_checkpoints=9, **settings)
    assert done == [1, 2, 3, 4, 5]
    run, waiting = RunFolder(tmp_path / "beside"), RunFolder(tmp_path / "waiting")
    for name in ("rollout-000004", "rollout-000005"):
        ours, theirs = (RunFolder.load_state(one.checkpoints / name) for one in (run, waiting))
        pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)
        assert len(pairs) > 10
        shutil.rmtree(run.checkpoints / name)
    latest = run.latest()
    assert latest == run.checkpoints / "rollout-000002", "which was written a rollout later"
    assert run.check(latest)
    resume(run.path)
    same(waiting.path, run.path)


def same(whole: Path, run: Path) -> None:
    expected, found = ({**weights(one), **gate(one)} for one in (whole, run))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert metrics(whole) == metrics(run)


def gate(run: Path) -> dict[str, torch.Tensor]:
    path = run / "model" / "gate.safetensors"
    return load_file(path) if path.exists() else {}


@pytest.mark.parametrize("kind", ["lora", "lossless"])
def test_checkpoints_of_adapters_hold_the_adapter_alone(kind: str, ar_model: str, tmp_path: Path) -> None:
    """Else each checkpoint would hold a copy of weights that never change; and it must be a model all the same."""
    convert(ar_model, PROMPTS, tmp_path / "run", **SETTINGS | KINDS[kind])
    checkpoint = RunFolder(tmp_path / "run").latest()
    assert checkpoint is not None
    assert not (checkpoint / "model.safetensors").exists()
    ours, model = (opdlm.load(path, device="cpu").model for path in (checkpoint, tmp_path / "run"))
    pairs = zip(ours.parameters(), model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("why", ["set", "no room"])
def test_training_waits_where_a_copy_is_not_wanted(
    why: str, ar_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a copy would be made in memory that is not there, and the system would kill the run."""
    monkeypatch.setattr(loop, "room_for", lambda copy: why != "no room")
    monkeypatch.setattr(loop, "snapshot", lambda student: pytest.fail("copied"))
    run = RunFolder(tmp_path / "run")

    def on_step(metrics: StepMetrics) -> None:
        assert metrics.rollout < 2 or run.latest() is not None

    convert(ar_model, PROMPTS, run.path, on_step=on_step, async_save=why != "set", **SETTINGS | {"rollouts": 2})


def test_a_failed_write_ends_the_run(ar_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run on a full disk would go on for days and leave nothing."""
    seen, chosen = list[int](), SETTINGS | {"rollouts": 6, "save_every_rollouts": 3}
    tried = threading.Event()

    def full(*_: object, **__: object) -> None:
        tried.set()
        raise StorageError("the disk is full; free some space")

    def on_step(metrics: StepMetrics) -> None:
        seen.append(metrics.rollout)
        assert metrics.rollout <= 3 or tried.wait(60)

    monkeypatch.setattr(api, "save_checkpoint", full)
    with pytest.raises(StorageError, match="the disk is full"):
        convert(ar_model, PROMPTS, tmp_path / "run", on_step=on_step, **chosen)
    assert seen in ([1, 2, 3], [1, 2, 3, 4])
    monkeypatch.undo()
    resume(tmp_path / "run")


def test_the_end_of_a_run_waits_for_its_checkpoint(
    ar_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Ctrl-C, or a crash of the caller's own code, would cost the checkpoint that is being written."""
    save, slow = api.save_checkpoint, threading.Event()

    def slowly(*args: Any, **kwargs: Any) -> None:
        slow.wait(0.3)
        save(*args, **kwargs)

    monkeypatch.setattr(api, "save_checkpoint", slowly)
    for end, newest in ((KeyboardInterrupt, 3), (ZeroDivisionError, 2)):

        def stop(metrics: StepMetrics, end: type[BaseException] = end) -> None:
            if metrics.rollout == 3:
                raise end

        run = RunFolder(tmp_path / end.__name__)
        with pytest.raises(end):
            convert(ar_model, PROMPTS, run.path, on_step=stop, **SETTINGS)
        assert run.latest() == run.checkpoints / f"rollout-{newest:06d}"
        assert run.check(run.checkpoints / f"rollout-{newest:06d}")


def test_a_damaged_checkpoint_is_not_trained_on(ar_model: str, tmp_path: Path, capsys: Any) -> None:
    """Else one flipped bit would be in the model for ever; and what the message says must lead on."""
    run = RunFolder(tmp_path / "run")
    convert(ar_model, PROMPTS, tmp_path / "whole", **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, PROMPTS, run.path, on_step=cut_at(4), **SETTINGS)
    newest = run.checkpoints / "rollout-000004"
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # a weight's bit: nothing but the checksum notices
    file.write_bytes(content)
    message = fails(capsys, "convert", "--resume", run.path)
    assert f"{file} is damaged" in message
    assert f"rollout-000002 is intact; to go on from it: rm -r {newest} && opdlm convert --resume {run.path}" in message
    with pytest.raises(CheckpointError, match="damaged"):
        opdlm.load(newest)
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert call("convert", "--resume", run.path) == 0
    same(tmp_path / "whole", run.path)


def test_what_the_user_puts_beside_the_checkpoints_stays(ar_model: str, tmp_path: Path) -> None:
    """Else a copy that someone made to be safe would be taken for the oldest checkpoint and deleted."""
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, PROMPTS, run.path, on_step=cut_at(2), **SETTINGS)
    copy, packed = run.checkpoints / "rollout-000002-backup-2026", run.checkpoints / "rollout-000002.tar"
    shutil.copytree(run.checkpoints / "rollout-000002", copy)
    packed.write_bytes(b"tar")
    (run.checkpoints / "unfinished-notes.txt").write_text("of an interrupted copy")
    resume(run.path)
    assert (copy / "model.safetensors").is_file()
    assert packed.is_file()
    assert run.latest() == run.checkpoints / "rollout-000005"


def test_a_checkpoint_without_checksums_is_named_once(ar_model: str, tmp_path: Path) -> None:
    """Else an upgrade would cost a run; or nobody would know that its files were not compared."""
    run, notes = RunFolder(tmp_path / "run"), list[str]()
    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, PROMPTS, run.path, on_step=cut_at(2), **SETTINGS)
    (run.checkpoints / "rollout-000002" / checksums.FILE).unlink()
    resume(run.path, on_note=notes.append)
    (note,) = (note for note in notes if "checksums" in note)
    assert f"{run.checkpoints / 'rollout-000002'} has no checksums" in note


@pytest.fixture
def agreements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of 10 tokens, by rollout: the validation before training, then those after each rollout."""
    made: list[int] = []

    def validate(self: Validator, pair: object) -> Validation:
        return Validation.of([10], tokens=10, agreed=made.pop(0), forwards=5)

    monkeypatch.setattr(Validator, "__call__", validate)
    return made


BEST = SETTINGS | {"save_every_rollouts": 4, "eval_every": 1, "eval_count": 1, "keep_checkpoints": 1}


def test_the_best_model_is_kept(ar_model: str, tmp_path: Path, agreements: list[int], capsys: Any) -> None:
    """Else a run that got worse at its end would have lost its best model, which nobody could load."""
    run = RunFolder(tmp_path / "run")
    agreements[:] = [0, 3, 7, 7, 6, 5]
    convert(ar_model, PROMPTS, run.path, keep_best=True, **BEST)
    kept = {path.name for path in run.checkpoints.iterdir()}
    assert kept == {"rollout-000002", "rollout-000005"}
    assert run.kept_best() == run.checkpoints / "rollout-000002"
    assert RunFolder.load_state(run.best)["line"]["validation"]["agreed"] == 7
    assert call("generate", run.best, "abc", "--max-new-tokens", "4", "--device", "cpu") == 0
    assert original_of(run.best) == ar_model
    different = load_file(run.best / "model.safetensors"), weights(run.path)
    assert any(not torch.equal(different[0][name], value) for name, value in different[1].items())


def test_a_resumed_run_knows_its_best(ar_model: str, tmp_path: Path, agreements: list[int]) -> None:
    """Else the first validation after a resume would take the place of a better one; also where a kill came between
    the checkpoint and its mark."""
    run = RunFolder(tmp_path / "run")
    agreements[:] = [0, 3, 7, 1]
    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, PROMPTS, run.path, keep_best=True, on_step=cut_at(3), **BEST)
    agreements[:] = [6, 5]
    resume(run.path)
    assert run.kept_best() == run.checkpoints / "rollout-000002"

    agreements[:] = [0, 3, 7]
    killed = RunFolder(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, PROMPTS, killed.path, keep_best=True, on_step=cut_at(2), **BEST)
    killed.best.unlink()
    agreements[:] = [6, 6, 5]
    resume(killed.path)
    assert killed.kept_best() == killed.checkpoints / "rollout-000002"


@pytest.mark.parametrize("place", ["save_state", "log"])
def test_the_best_is_kept_if_ctrl_c_comes_while_it_is_written(
    place: str, ar_model: str, tmp_path: Path, agreements: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would count as kept, and no later model would take its place."""
    run, whole = RunFolder(tmp_path / "run"), getattr(RunFolder, place)
    called: list[object] = []

    def cut(self: RunFolder, *values: Any, **more: Any) -> Any:
        called.append(values)
        if len(called) == 2:  # of the second rollout
            raise KeyboardInterrupt
        return whole(self, *values, **more)

    monkeypatch.setattr(RunFolder, place, cut)
    agreements[:] = [0, 3, 7]
    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, PROMPTS, run.path, keep_best=True, async_save=False, **BEST)
    agreements[:] = [6, 6, 5]
    resume(run.path)
    assert run.kept_best() == run.checkpoints / "rollout-000002"


def test_keep_best_needs_validations(ar_model: str, tmp_path: Path) -> None:
    """Else a flag would do nothing, and the user would find that out at the end."""
    with pytest.raises(ConfigError, match="keep_best needs validations to compare; set eval_every too"):
        convert(ar_model, PROMPTS, tmp_path / "run", keep_best=True, **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_sizes_are_told_before(ar_model: str, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    """Else nobody would know that a disk or the memory is too small before it is full."""
    small = "--rollouts 1 --prompts-per-rollout 2 --rows-per-update 2 --response-length.end 8 --device cpu".split()
    assert call("convert", ar_model, "--prompts", prompts, "--output", tmp_path / "run", *small) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("checkpoints: "))
    assert "every 10 rollouts, 2 kept; written beside the training, from a copy of" in line
    told, unit = line.split()[1:3]
    checkpoint = RunFolder(tmp_path / "run").latest()
    assert checkpoint is not None
    there = sum((checkpoint / name).stat().st_size for name in ("model.safetensors", "training_state.pt"))
    assert float(told) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(there, rel=0.2)
