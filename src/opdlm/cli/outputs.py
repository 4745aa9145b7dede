"""Files that a command writes where the user says: found wanting before hours of work, not after."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

from opdlm.errors import StorageError


def check_writable(path: Path) -> None:
    """Raises StorageError if no file can be written there; nothing is changed."""
    try:
        was_there = path.exists()
        path.open("a").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_json(path: Path, content: Any) -> None:
    """One JSON file. Raises StorageError where it cannot be written."""
    try:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


class JsonLines:
    """A file of one JSON object a line; each is in the file once it is written, whatever happens later."""

    def __init__(self, path: Path, mode: Literal["w", "a"] = "w") -> None:
        """Opened with the first line: until then an earlier file stays as it is. mode: "a" goes on with it."""
        self.path = path
        self._mode: Literal["w", "a"] = mode
        self._file: TextIOWrapper | None = None

    def write(self, content: Mapping[str, Any]) -> None:
        """One more line. Raises StorageError."""
        try:
            if self._file is None:
                self._file = self.path.open(self._mode, encoding="utf-8")
            self._file.write(json.dumps(content, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """Nothing more is written."""
        if self._file is not None:
            self._file.close()


@contextmanager
def json_lines(path: Path) -> Iterator[JsonLines]:
    """A new file at `path`, with its first line. Raises StorageError where it cannot be written."""
    check_writable(path)
    with closing(JsonLines(path)) as lines:
        yield lines


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be written ({error.strerror}); choose another place")
