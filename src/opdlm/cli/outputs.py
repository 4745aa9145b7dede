"""Files that a command writes where the user says: found wanting before hours of work, not after."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from io import TextIOWrapper
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from opdlm.errors import StorageError, UsageError

_ESCAPED = "backslashreplace"
"""A lone half of a surrogate pair, which UTF-8 does not have, becomes its escape: in a JSON text the same string."""


def check_apart(
    outputs: Mapping[str, str | Path | None], inputs: Iterable[str | None], models: Iterable[str | None] = ()
) -> None:
    """Raises UsageError where a file that is to be written would take the place of another one of the command.

    Args:
        outputs: files by the flag that names each. inputs: what the command reads; a name on the hub is no file.
        models: folders of models or runs that it reads: of these every file is needed.
    """
    places = {flag: Path(output) for flag, output in outputs.items() if output is not None}
    for (one, first), (other, second) in combinations(places.items(), 2):
        if first.resolve() == second.resolve() or _same(first, second):
            raise UsageError(f"{one} and {other} are both written to {first}; give each a file of its own")
    read, kept = [Path(name) for name in inputs if name], [Path(name) for name in models if name]
    for flag, output in places.items():
        if any(_same(output, path) for path in (*read, *kept) if path.is_file()):
            raise UsageError(f"{flag} {output} would overwrite what the command reads; name another file")
        if any(_is_needed(output, folder) for folder in kept if folder.is_dir()):
            raise UsageError(f"{flag} {output} would overwrite a file in the folder of a model; name another file")


def _same(one: Path, other: Path) -> bool:
    """Whether both are there, and are one file: also by a link."""
    return one.exists() and other.exists() and one.samefile(other)


def _is_needed(output: Path, folder: Path) -> bool:
    """Whether it is a file of a model's folder, or of a run's: there a report and an evaluation may be replaced."""
    from opdlm.records.run_folder import RunFolder

    run = RunFolder(folder.resolve())
    places = (output.resolve(), output.parent.resolve() / output.name)  # the hub's cache has links in its folders
    return any(
        place.is_file()
        and place.is_relative_to(run.path)
        and (place.parent != run.path or not run.config.is_file() or place in run.needed)
        for place in places
    )


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
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors=_ESCAPED)
    except OSError as error:
        raise _unwritable(path, error) from error


class JsonLines:
    """A file of one JSON object a line; each is in the file once it is written, whatever happens later."""

    def __init__(self, path: Path, mode: Literal["w", "a"] = "w", heading: Mapping[str, Any] | None = None) -> None:
        """Opened with the first line: until then an earlier file stays as it is, or none is there.

        mode: "a" goes on with it. heading: what goes before the first line of a file.
        """
        self.path = path
        self._mode: Literal["w", "a"] = mode
        self._heading = heading
        self._file: TextIOWrapper | None = None

    def write(self, content: Mapping[str, Any]) -> None:
        """One more line; what JSON has no form for, as text. Raises StorageError."""
        try:
            self._opened().write(_line(content))
            self._opened().flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _opened(self) -> TextIOWrapper:
        if self._file is None:
            self._file = self.path.open(self._mode, encoding="utf-8", errors=_ESCAPED)
            if self._heading is not None and self._file.tell() == 0:
                self._file.write(_line(self._heading))
        return self._file

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


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, default=str) + "\n"


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be written ({error.strerror}); choose another place")
