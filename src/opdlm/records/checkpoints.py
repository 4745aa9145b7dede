"""The checkpoints of a run: written whole or not at all, compared with their checksums, the best one kept."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from opdlm.errors import CheckpointError, StorageError
from opdlm.records import checksums, durable

_STATE = "training_state.pt"
_UNFINISHED = "unfinished-"
_NAME = re.compile(r"rollout-(\d{6,})(?:-and-(\d+)-updates)?")
OF_TRAINING = (_STATE, checksums.FILE)
"""Files of a checkpoint that are no part of its model."""


class Checkpoints:
    """The part of a run's folder `path` that holds its checkpoints.

    Attributes:
        checkpoints: folder of all. best: link to the one of the best agreement, where that is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints, self.best = path, path / "checkpoints", path / "best"

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = self._by_age()
        return found[-1] if found else None

    def kept_best(self) -> Path | None:
        """The checkpoint of the best agreement, where one is kept."""
        return self.checkpoints / self.best.readlink().name if self.best.is_dir() else None

    def way_out(self) -> str:
        """What to do when training has gone wrong: the last good checkpoint, and the command that goes on from it."""
        where = f"the last good checkpoint is {last}" if (last := self.latest()) else "there is no checkpoint yet"
        return f"{where}; continue with a lower rate: opdlm convert --resume {self.path} --optimiser.learning-rate RATE"

    def _by_age(self) -> list[Path]:
        """All complete checkpoints, the oldest first; other files and folders there are the user's own."""
        found = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return sorted((path for path in found if _NAME.fullmatch(path.name) and path.is_dir()), key=_numbers)

    @staticmethod
    def rollouts_begun(checkpoint: Path | None) -> int:
        """Rollouts in a checkpoint, the one that is under way included; 0 without a checkpoint."""
        done, *under_way = [0] if checkpoint is None else _numbers(checkpoint)
        return done + len(under_way)

    def save_state(
        self,
        rollouts_done: int,
        state: dict[str, Any],
        save_model: Callable[[Path], None],
        keep: int,
        *,
        updates_begun: int | None = None,
        best: bool = False,
    ) -> Path:
        """A checkpoint: `save_model(folder)` writes the model, then the training state; renamed when all is there.

        Args:
            keep: how many of the newest stay; the best one does in any case.
            updates_begun: updates of the next rollout that are in it; None: that has not begun.
            best: whether this is the best one so far.

        Raises:
            StorageError: no room; earlier checkpoints stay as they are.
        """
        name = f"rollout-{rollouts_done:06d}" + ("" if updates_begun is None else f"-and-{updates_begun}-updates")
        unfinished, final = self.checkpoints / f"{_UNFINISHED}{name}", self.checkpoints / name
        try:
            shutil.rmtree(unfinished, ignore_errors=True)  # left by an interruption
            save_model(unfinished)
            torch.save(state, unfinished / _STATE)
            checksums.write(unfinished)
            self._remove(final)
            unfinished.replace(final)
            durable.synced(self.checkpoints)
            if best:
                self.mark_best(final)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            raise StorageError(
                f"cannot write checkpoint {final} ({error}); free some room, then use --resume"
            ) from error
        for old in self._by_age()[:-keep]:
            if old != self.kept_best():
                self._remove(old)
        return final

    def mark_best(self, checkpoint: Path) -> None:
        """From now on `best` is this one."""
        link = self.path / f".{_UNFINISHED}best"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(self.checkpoints.name) / checkpoint.name, target_is_directory=True)
        link.replace(self.best)

    def clear(self) -> None:
        """Removes what an interruption left half-written, or half-removed."""
        for leftover in self.checkpoints.glob(f"*{_UNFINISHED}*"):  # hidden drafts too
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def _remove(self, checkpoint: Path) -> None:
        """By its name first: half a checkpoint must not look like a whole one."""
        if checkpoint.exists():
            gone = self.checkpoints / f"{_UNFINISHED}removal-of-{checkpoint.name}"
            shutil.rmtree(gone, ignore_errors=True)
            shutil.rmtree(checkpoint.rename(gone))

    def check(self, checkpoint: Path) -> bool:
        """Compares all files with their checksums; False where there are none, as earlier versions wrote none.

        Raises CheckpointError if a file is damaged; the message says how to go on.
        """
        if not checksums.there(checkpoint):
            return False
        if (wrong := checksums.damage(checkpoint)) is None:
            return True
        ages = self._by_age()
        older = reversed(ages[: ages.index(checkpoint)])
        intact = next((one for one in older if checksums.there(one) and checksums.damage(one) is None), None)
        if intact is None:
            fix = "no older checkpoint is intact: restore the file from a copy, or start a new run"
        else:
            newer = shlex.join(map(str, ages[ages.index(intact) + 1 :]))  # damaged ones in between are no way on either
            command = f"rm -r {newer} && opdlm convert --resume {shlex.quote(str(self.path))}"
            fix = f"the older checkpoint {intact.name} is intact; to go on from it: {command}"
        raise CheckpointError(f"{wrong}; {fix}")

    @staticmethod
    def load_state(checkpoint: Path) -> dict[str, Any]:
        """The training state of a checkpoint. Raises CheckpointError if it is damaged."""
        try:
            state = torch.load(checkpoint / _STATE, map_location="cpu", weights_only=True)  # of whatever device
        except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, UnpicklingError) as error:
            raise CheckpointError(
                f"{checkpoint / _STATE} is damaged or missing; delete {checkpoint} and resume"
            ) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{checkpoint / _STATE} holds no training state; delete {checkpoint} and resume")
        return state


def _numbers(checkpoint: Path) -> list[int]:
    """Those in a checkpoint's name: rollouts, and updates of the next one; as text 9 would stand behind 10."""
    named = _NAME.fullmatch(checkpoint.name)
    assert named is not None
    return [int(number) for number in named.groups() if number is not None]
