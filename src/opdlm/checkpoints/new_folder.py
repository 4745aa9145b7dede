"""A folder that is written whole or not at all: what the exports fill."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opdlm.errors import OutputExistsError


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A hidden empty folder beside `path`, which takes that name if the body succeeds, and vanishes if it does not.

    Raises OutputExistsError where `path` holds something.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputExistsError(f"{target} exists and is not empty; choose another folder")
    draft = target.absolute().with_name(f".{target.absolute().name}.partial")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # left by an export that was killed
        draft.mkdir(parents=True)
        yield draft
        if target.exists():
            target.rmdir()  # empty, as was checked
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
