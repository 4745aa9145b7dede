"""SHA-256 of every file of a folder, as `sha256sum --check` reads them: what is loaded is what was written."""

import re
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path

from opdlm.records.durable import synced

FILE = "checksums.sha256"
CHANGEABLE = ("generation_config.json", "README.md")
"""What users edit, and `opdlm tune` writes and its undo puts back."""
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_END = re.compile(r"# (\d+) files")  # the last line, so that a file that was cut off is none


def write(folder: Path) -> None:
    """Sums of all files of the folder, written last; when it returns, all of them are on the disk itself."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    _write(folder, {name: _sum(folder / name) for name in names if name != FILE})
    for path in (*folder.rglob("*"), folder):
        synced(path)


def there(folder: Path) -> bool:
    """Whether the folder has sums; those of earlier versions have none."""
    return (folder / FILE).is_file()


def damage(folder: Path) -> str | None:
    """The first file that is not as it was written, and what is wrong with it; None where all of them are.

    `CHANGEABLE` files need only be there.
    """
    sums = _read(folder)
    if sums is None:
        return f"{folder / FILE} is damaged"
    return next(_wrong(folder, sums), None)


def _wrong(folder: Path, sums: dict[str, str]) -> Iterator[str]:
    for name, expected in sums.items():
        path = folder / name
        try:
            if _sum(path) != expected and name not in CHANGEABLE:
                yield f"{path} is damaged (its SHA-256 is not that in {FILE})"
        except FileNotFoundError:
            yield f"{path} is missing"
        except OSError as error:
            yield f"{path} cannot be read ({error.strerror})"


def _write(folder: Path, sums: dict[str, str]) -> None:
    lines = [*(f"{value}  {name}" for name, value in sums.items()), f"# {len(sums)} files"]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(folder: Path) -> dict[str, str] | None:
    """Name -> sum; None if the file is damaged itself."""
    *lines, last = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    found, end = [_LINE.fullmatch(line) for line in lines], _END.fullmatch(last)
    sums = {one[2]: one[1] for one in found if one is not None}
    return sums if end is not None and len(sums) == len(lines) == int(end[1]) else None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
