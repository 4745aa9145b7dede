"""A file of lines that grows as they are made, and that a later call goes on with.

Lines are kept in a file `OUTPUT.partial`, behind a first one that says what they were made with. It becomes OUTPUT when
all are there, so OUTPUT is complete or not there at all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdlm.cli.outputs import JsonLines, check_writable
from opdlm.errors import OutputExistsError, RecordError, UsageError

WEIGHTS = "weights"
"""What `made_with` says of the weights; files of earlier versions do not say it, and are gone on with as they are."""


def check_output(output: Path, resume: bool, flag: str = "--output") -> None:
    """OutputExistsError if there is a file, or lines of an earlier call and no `resume`; else UsageError, StorageError.

    `flag`: by which the user named it.
    """
    if output.exists() and resume:
        raise OutputExistsError(f"{output} is complete: nothing is left to do; remove it to write it anew")
    if output.exists():
        raise OutputExistsError(f"{output} exists; choose another {flag}, or remove it")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is no folder; make it, or choose another {flag}")
    if not resume and len(whole_lines(partial_of(output))) > 1:
        raise OutputExistsError(
            f"{partial_of(output)} holds rows of an earlier call; continue it with --resume, or remove it"
        )
    check_writable(partial_of(output))


def partial_of(output: Path) -> Path:
    """Where the lines are meanwhile."""
    return output.with_name(output.name + ".partial")


def kept_lines(output: Path, made_with: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that are there already; afterwards nothing else is. A line that was cut off is taken away.

    RecordError if they were made with something else, or one of them is damaged.
    """
    partial = partial_of(output)
    lines = whole_lines(partial)
    if len(lines) < 2:  # nothing was written
        partial.unlink(missing_ok=True)
        return []
    heading, *kept = [as_object(line, where_of(partial, number)) for number, line in enumerate(lines, -1)]
    _check_made_alike(partial, heading, json.loads(json.dumps(made_with)))
    with partial.open("r+b") as file:
        file.truncate(sum(len(line) + 1 for line in lines))
    return kept


def more_lines(output: Path, made_with: dict[str, Any]) -> JsonLines:
    """Takes the lines that are not there yet, behind those of `kept_lines`."""
    return JsonLines(partial_of(output), "a", heading=made_with)


def where_of(partial: Path, index: int) -> str:
    """The place of a line, by its index among `kept_lines`, for messages."""
    return f"{partial}, line {index + 2}"


def as_object(line: bytes, where: str) -> dict[str, Any]:
    """RecordError for what is no JSON object."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise damaged(where)
    return found


def damaged(where: str, how: str = "is damaged") -> RecordError:
    """What to say of a line that is not as it was written."""
    return RecordError(f"{where} {how}; remove it and all lines below it, which --resume then writes again")


def finish(output: Path) -> None:
    """The lines without the first one, in the place of their own."""
    partial, draft = partial_of(output), output.with_name(f".{output.name}.whole")
    with partial.open("rb") as rows, draft.open("wb") as file:
        next(rows)
        file.writelines(rows)
    draft.replace(output)
    partial.unlink()


def whole_lines(path: Path) -> list[bytes]:
    """Those that end; what was cut off behind them is left out."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _check_made_alike(partial: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    without = {name: value for name, value in asked.items() if name != WEIGHTS}
    if {name: value for name, value in found.items() if name != WEIGHTS} != without:
        raise RecordError(
            f"{partial} was made from other prompts, with other settings or another model; "
            "call as before to continue it, or remove it to begin anew"
        )
    if found.get(WEIGHTS, asked.get(WEIGHTS)) != asked.get(WEIGHTS):
        raise RecordError(
            f"{partial} was written by other weights than {asked.get('model') or 'the model'} or its original has now; "
            "put those back to continue it, or remove it to begin anew"
        )
