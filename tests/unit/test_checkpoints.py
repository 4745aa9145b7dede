"""Checkpoints of a run: as they were written, or refused with the way on; the best one stays."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from opdlm.errors import CheckpointError
from opdlm.records import checksums, durable
from opdlm.records.checkpoints import Checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "a run")
    made.checkpoints.mkdir(parents=True)
    return made


def save_model(folder: Path) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "inner" / "more").write_text("m")


def save(run: Checkpoints, rollouts: int, keep: int = 2, best: bool = False) -> Path:
    return run.save_state(rollouts, {"x": torch.ones(2)}, save_model, keep, best=best)


def test_every_file_is_verified(run: Checkpoints) -> None:
    """Else a bit that a disk turned would be trained on, and nobody would know."""
    checkpoint = save(run, 1)
    assert run.check(checkpoint)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", checksums.FILE], cwd=checkpoint, check=True)
    for name in ("weights", "inner/more", "training_state.pt"):
        path = checkpoint / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=f"{name} is damaged.*restore the file from a copy"):
            run.check(checkpoint)
        path.unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            run.check(checkpoint)
        path.write_bytes(content)
    assert run.check(checkpoint)


@pytest.mark.parametrize("end", [0, 30, 77, -1])
def test_a_cut_list_of_sums_is_no_list(run: Checkpoints, end: int) -> None:
    """Else a list that lost its end would vouch for files that it does not name."""
    checkpoint = save(run, 1)
    path = checkpoint / checksums.FILE
    lines = path.read_bytes()
    path.write_bytes(lines[:end] if end >= 0 else lines[: lines.rindex(b"#")])
    with pytest.raises(CheckpointError, match=r"checksums\.sha256 is damaged"):
        run.check(checkpoint)


def test_the_way_on_from_a_damaged_checkpoint_works(run: Checkpoints) -> None:
    """Else a run with a good older checkpoint would be given up, or the advice would lead to a damaged one again."""
    for rollouts in (1, 2, 3):
        save(run, rollouts, keep=3)
    for rollouts in (2, 3):
        (run.checkpoints / f"rollout-{rollouts:06d}" / "weights").write_bytes(b"x")
    newest = run.latest()
    assert newest is not None
    with pytest.raises(CheckpointError) as error:
        run.check(newest)
    words = str(error.value).partition("rollout-000001 is intact; to go on from it: ")[2]
    delete, _, resume = words.partition(" && ")
    assert resume == f"opdlm convert --resume '{run.path}'"
    subprocess.run(delete, shell=True, check=True)
    assert run.latest() == run.checkpoints / "rollout-000001"


def test_checkpoints_of_earlier_versions_are_taken(run: Checkpoints) -> None:
    """Else an upgrade would cost every run that is under way."""
    checkpoint = save(run, 1)
    (checkpoint / checksums.FILE).unlink()
    assert not run.check(checkpoint)


def test_what_users_change_may_differ_from_its_sum(tmp_path: Path) -> None:
    """Else a checkpoint whose decoding was tuned, or put back as it was, would count as damaged."""
    for name in ("generation_config.json", "README.md", "config.json"):
        (tmp_path / name).write_text("{}")
    checksums.write(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"a": 1}')
    (tmp_path / "README.md").write_text("mine")
    assert checksums.damage(tmp_path) is None
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert "config.json is damaged" in str(checksums.damage(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").unlink()
    assert "generation_config.json is missing" in str(checksums.damage(tmp_path))


def test_all_is_on_the_disk_before_the_checkpoint_has_its_name(
    run: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave a checkpoint whose files are empty."""
    events: list[str] = []
    synced, replace = durable.synced, Path.replace
    for module in (checksums, durable):
        monkeypatch.setattr(module, "synced", lambda path: events.append(path.name) or synced(path))
    monkeypatch.setattr(Path, "replace", lambda self, to: events.append("renamed") or replace(self, to))
    save(run, 1)
    before = events[: events.index("renamed")]
    assert {"weights", "more", "training_state.pt", checksums.FILE, "unfinished-rollout-000001"} <= set(before)
    assert events[-1] == "checkpoints", "the new name too"


def test_the_best_checkpoint_stays(run: Checkpoints) -> None:
    """Else the best model would be deleted with the old ones; and `best` must name one that is there."""
    assert run.kept_best() is None
    save(run, 1, best=True)
    save(run, 2, best=True)
    for rollouts in (3, 4, 5):
        save(run, rollouts)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [f"rollout-00000{n}" for n in (2, 4, 5)]
    assert run.kept_best() == run.checkpoints / "rollout-000002"
    assert (run.best / "weights").is_file()
    run.path.rename(run.path.with_name("moved"))
    moved = Checkpoints(run.path.with_name("moved"))
    assert (moved.best / "weights").is_file(), "wherever the run is now"
    save(moved, 6, best=True)
    assert sorted(path.name for path in moved.checkpoints.iterdir()) == ["rollout-000005", "rollout-000006"]
    shutil.rmtree(moved.checkpoints / "rollout-000006")
    assert moved.kept_best() is None


@pytest.mark.parametrize("again", [1, 2], ids=["the same checkpoint", "another, so that the first goes"])
def test_half_a_removal_leaves_no_checkpoint(run: Checkpoints, again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that is killed while it deletes would later resume from what was left."""
    save(run, 1, keep=1)
    remove = shutil.rmtree

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not path.exists():
            return
        (path / "weights").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(run, again, keep=1)
    monkeypatch.setattr(shutil, "rmtree", remove)
    run.clear()
    for left in run.checkpoints.iterdir():
        assert run.check(left)
    assert [path.name for path in run.checkpoints.iterdir()] == (["rollout-000002"] if again == 2 else [])
