"""Files that are whole or not there, and on the disk itself when a call returns."""

import os
from pathlib import Path
from typing import BinaryIO


def written(path: Path, text: str) -> None:
    """The file with this text, in one step: a reader, or a crash, finds the old one or the new one.

    Raises OSError, such as for a full disk; the old one is as it was.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.write_text(text, encoding="utf-8")
        synced(draft)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def appended(path: Path, line: str) -> None:
    """The file with one line more. What a crash left of a line goes first.

    Raises OSError, such as for a full disk; the file then ends with the line before.
    """
    with path.open("a+b") as file:
        whole = _end_of_lines(file)
        file.truncate(whole)
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, whole)
            raise


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line ends; the file is read only if it ends with another."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() in (b"", b"\n"):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def synced(path: Path) -> None:
    """Makes the system write a file, or the names in a folder, to the disk itself."""
    if path.is_dir() and os.name == "nt":  # where folders cannot be opened
        return
    opened = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
