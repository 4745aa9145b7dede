"""A folder that is filled: complete or not there."""

from contextlib import AbstractContextManager
from pathlib import Path

from opdlm.checkpoints.save import replaced
from opdlm.errors import OutputExistsError


def new_folder(path: str | Path) -> AbstractContextManager[Path]:
    """An empty folder that takes the name `path` if the body succeeds, and vanishes if it does not.

    Raises:
        OutputExistsError: `path` holds something, or is the current folder. StorageError: the disk is full, or nothing
            can be written there.
    """
    return replaced(unused(path))


def unused(path: str | Path) -> Path:
    """The path, absolute, of a folder that is not there yet or empty. Raises OutputExistsError."""
    target = Path(path).resolve()
    if target == Path.cwd():
        raise OutputExistsError("the result is a folder of its own, and this is the current one; choose another")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputExistsError(f"{target} exists and is not empty; choose another folder")
    return target
