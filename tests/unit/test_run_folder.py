"""The folder of a run: whole files, or none."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from opdlm.config import ConvertSettings
from opdlm.errors import CheckpointError, OutputExistsError, RecordError, RunInUseError, StorageError
from opdlm.records.history import Resumption
from opdlm.records.metrics import Flops, StepMetrics, Totals
from opdlm.records.run_folder import RunFolder
from opdlm.records.worth import Worth


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    with RunFolder.created(tmp_path / "run", ConvertSettings(model="m", block_size=8)) as made:
        return made


def save_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")


def save(run: RunFolder, rollouts: int, keep: int = 2) -> Path:
    return run.save_state(rollouts, {"rollouts": rollouts, "x": torch.ones(2)}, save_model, keep)


def test_settings_come_back(run: RunFolder) -> None:
    """Else a resumed run would go on with other settings."""
    assert RunFolder.found(run.path).settings() == ConvertSettings(model="m", block_size=8)


def test_a_used_folder_is_refused(run: RunFolder, tmp_path: Path) -> None:
    """Else a second run would overwrite the first; and resuming an empty folder would start a new one silently."""
    with pytest.raises(OutputExistsError, match="--resume"), RunFolder.created(run.path, ConvertSettings()):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError), RunFolder.created(tmp_path / "file", ConvertSettings()):
        pass
    with pytest.raises(CheckpointError, match="no run to resume"), RunFolder.opened(tmp_path / "nothing"):
        pass


def test_the_newest_checkpoints_are_kept(run: RunFolder) -> None:
    """Else the disk would fill up, or the newest checkpoint would be the one deleted (9 sorts behind 10 as text)."""
    assert run.latest() is None
    for rollouts in (8, 9, 10, 11):
        save(run, rollouts)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["rollout-000010", "rollout-000011"]
    latest = run.latest()
    assert latest is not None
    assert run.load_state(latest)["rollouts"] == 11


@pytest.mark.parametrize("where", ["model", "state", "state as torch says it"])
def test_a_full_disk_leaves_earlier_checkpoints(run: RunFolder, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that fills the disk would lose what it has, or resume from half a checkpoint."""
    first = save(run, 1, keep=1)
    before = {p.name: p.read_bytes() for p in first.iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")

    def failing(*args: object) -> None:
        if where == "model":
            (run.checkpoints / "unfinished-rollout-000002").mkdir()
        else:
            Path(str(args[1])).write_text("half")
        raise RuntimeError("PytorchStreamWriter failed writing file") if "torch" in where else full

    if where == "model":
        with pytest.raises(StorageError, match="free some room"):
            run.save_state(2, {}, failing, 1)
    else:
        monkeypatch.setattr(torch, "save", failing)
        with pytest.raises(StorageError, match="free some room"):
            save(run, 2, keep=1)
    assert [p.name for p in run.checkpoints.iterdir()] == ["rollout-000001"]
    assert {p.name: p.read_bytes() for p in first.iterdir()} == before
    assert run.latest() == first


def test_a_full_disk_while_logging_is_named(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the run would end in a traceback."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match="No space left"):
        run.log(metrics_of(1))


FULL = OSError(errno.ENOSPC, "No space left on device")
WRITES: dict[str, Callable[[RunFolder], None]] = {
    "config.toml": lambda run: run.change(ConvertSettings(model="other"), Resumption(rollouts_begun=1, changed={})),
    "history.jsonl": lambda run: run.change(ConvertSettings(model="m"), Resumption(rollouts_begun=1, changed={})),
    "metrics.jsonl": lambda run: run.log(metrics_of(2)),
    "metrics.jsonl, rewritten": lambda run: run.forget_after(0),
    "prompts.sha256": lambda run: run.keep_fingerprint("1" * 64),
    "worth.json": lambda run: run.keep_worth(Worth(held_out=False)),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_leaves_every_file_as_it_was(run: RunFolder, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run on a full disk would leave half a file, and could not be resumed when there is room again."""
    run.log(metrics_of(1))
    run.change(ConvertSettings(model="m", block_size=8), Resumption(rollouts_begun=0, changed={}))
    run.keep_fingerprint("0" * 64)
    run.keep_worth(Worth(held_out=True))
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    synced = 0

    def full(_descriptor: int) -> None:  # much later than the first bytes are written
        nonlocal synced
        synced += 1
        if what != "config.toml" or synced == 2:
            raise FULL

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        WRITES[what](run)
    after = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    if what == "config.toml":  # the line of history stands there first
        assert after.pop("history.jsonl").startswith(before.pop("history.jsonl"))
    assert after == before


def test_a_line_that_was_cut_takes_no_other_along(run: RunFolder) -> None:
    """Else the first change after a crash would be glued to half a line, and the history could not be read any more."""
    run.change(ConvertSettings(model="m"), Resumption(rollouts_begun=1, changed={}))
    with run.history.open("a") as file:
        file.write('{"rollouts_beg')
    assert [one.rollouts_begun for one in run.changes()] == [1]
    run.change(ConvertSettings(model="m"), Resumption(rollouts_begun=2, changed={}))
    assert [one.rollouts_begun for one in run.changes()] == [1, 2]


def test_a_crash_leaves_whole_records(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a kill in the middle of worth.json would keep the run from being resumed."""
    run.keep_worth(Worth(held_out=True))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.keep_worth(Worth(held_out=False))
    assert run.kept_worth() == Worth(held_out=True)


def test_half_a_checkpoint_is_cleared_away(run: RunFolder) -> None:
    """Else what a killed run left would be taken for a checkpoint."""
    save(run, 1)
    save_model(run.checkpoints / "unfinished-rollout-000002")
    save_model(run.checkpoints / ".unfinished-rollout-000002.partial")
    with RunFolder.opened(run.path) as again:
        assert [p.name for p in again.checkpoints.iterdir()] == ["rollout-000001"]


def test_a_run_is_written_by_one_process(run: RunFolder) -> None:
    """Else two that resume it would mix their weights and metrics, and one would clear away what the other writes."""
    with RunFolder.opened(run.path):
        save_model(run.checkpoints / "unfinished-rollout-000002")
        with pytest.raises(RunInUseError, match=rf"process {os.getpid()} on .* since 20"), RunFolder.opened(run.path):
            pass
        assert (run.checkpoints / "unfinished-rollout-000002").is_dir()
    with RunFolder.opened(run.path):
        assert not (run.checkpoints / "unfinished-rollout-000002").exists()


def test_of_two_that_make_a_run_one_does(tmp_path: Path) -> None:
    """Else the second, which found the folder free as well, would remove what the first has written."""
    with RunFolder.created(tmp_path / "run", ConvertSettings(model="m")) as first:
        first.config.unlink()  # as if it were at the very start
        first.rollouts.rmdir()
        first.checkpoints.rmdir()
        with pytest.raises(RunInUseError), RunFolder.created(tmp_path / "run", ConvertSettings(model="m")):
            pass


@pytest.fixture
def holder(run: RunFolder) -> Iterator[subprocess.Popen]:
    """Another process that holds the run."""
    code = """
import sys
from pathlib import Path
from opdlm.records.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_lock_ends_with_its_process(run: RunFolder, holder: subprocess.Popen) -> None:
    """Else a machine that goes off would leave a run that nobody can resume."""
    with pytest.raises(RunInUseError, match=f"process {holder.pid} "), RunFolder.opened(run.path):
        pass
    holder.kill()
    holder.wait()
    with RunFolder.opened(run.path):
        pass


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 truncated"])
def test_a_damaged_state_is_named(run: RunFolder, content: bytes) -> None:
    """Else resuming from a truncated file would end in a traceback of pickle."""
    checkpoint = save(run, 1)
    (checkpoint / "training_state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        run.load_state(checkpoint)


def metrics_of(rollout: int) -> StepMetrics:
    """With this number, and nothing in them."""
    return StepMetrics(
        rollout=rollout,
        rollouts=9,
        loss=1.0,
        gradient_norm=1.0,
        learning_rate=1e-3,
        updates=rollout,
        tokens_trained=3,
        positions_supervised=2,
        stopped_rows=1,
        tokens_per_forward=1.5,
        flops=Flops(rollout=1, teacher=2, student=3),
        seconds={"rollout": 0.5},
        peak_memory_bytes=1,
        total=Totals(tokens_trained=3 * rollout),
    )


def metrics(run: RunFolder) -> list[int]:
    return [logged.rollout for logged in run.logged()]


def test_metrics_go_back_to_the_checkpoint(run: RunFolder) -> None:
    """Else rollouts that a resumed run does again would be in the metrics, and in every figure, twice."""
    for rollout in range(1, 6):
        run.log(metrics_of(rollout))
    run.forget_after(3)
    assert metrics(run) == [1, 2, 3]
    run.log(metrics_of(4))
    assert metrics(run) == [1, 2, 3, 4]


def test_metrics_of_a_killed_run_are_mended(run: RunFolder) -> None:
    """Else a line cut in the middle would stop the resumed run, and a lost one would leave a hole in the totals."""
    run.log(metrics_of(1))
    with run.metrics.open("a") as file:
        file.write('{"rollout": 2, "lo')
    run.forget_after(2, metrics_of(2))
    assert metrics(run) == [1, 2]
    run.forget_after(2, metrics_of(2))
    assert metrics(run) == [1, 2]
    run.forget_after(0)
    assert metrics(run) == []


def test_metrics_that_were_never_written(run: RunFolder) -> None:
    """Else a run killed before its first line could not be resumed."""
    run.forget_after(0)
    run.log(metrics_of(1))
    assert metrics(run) == [1]


def test_metrics_of_the_first_version_are_read(run: RunFolder) -> None:
    """Else a run that an earlier opdlm began could not be resumed: its lines say no version."""
    old = metrics_of(1).to_json()
    del old["version"], old["evaluation"]
    run.metrics.write_text(json.dumps(old) + "\n")
    assert run.logged() == [metrics_of(1)]
    run.metrics.write_text(json.dumps(old | {"version": 7}) + "\n")
    with pytest.raises(RecordError, match="line 1 is not a StepMetrics of version 1"):
        run.logged()


@pytest.mark.parametrize("kept", [0, 3])
def test_a_cut_config_is_damaged(kept: int, run: RunFolder) -> None:
    """Else a run would go on with the defaults of what is gone."""
    lines = run.config.read_text().splitlines(keepends=True)
    run.config.write_text("".join(lines[:kept]))
    with pytest.raises(CheckpointError, match="is damaged"):
        run.settings()
