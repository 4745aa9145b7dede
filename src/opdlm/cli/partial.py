"""A file of lines that grows as they are made, and that a later call goes on with.

Lines are kept in a file `OUTPUT.partial`, behind a first one that says what they were made with. It becomes OUTPUT when
all are there, so OUTPUT is complete or not there at all.
"""

import json
from pathlib import Path
from typing import Any

from opdlm.cli.outputs import check_writable
from opdlm.errors import OutputExistsError, RecordError, UsageError


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
    if partial_of(output).exists() and not resume:
        raise OutputExistsError(
            f"{partial_of(output)} holds rows of an earlier call; continue it with --resume, or remove it"
        )
    check_writable(partial_of(output))


def partial_of(output: Path) -> Path:
    """Where the lines are meanwhile."""
    return output.with_name(output.name + ".partial")


def kept_lines(output: Path, made_with: dict[str, Any]) -> list[str]:
    """The lines that are there already; afterwards nothing else is. A line that was cut off is taken away.

    RecordError if they were made with something else.
    """
    partial, header = partial_of(output), json.dumps(made_with)
    lines = partial.read_bytes().split(b"\n")[:-1] if partial.exists() else []
    if not lines:
        partial.write_text(header + "\n", encoding="utf-8")
        return []
    if lines[0].decode(errors="replace") != header:
        raise RecordError(
            f"{partial} was made from other prompts, with other settings or another model; "
            "call as before to continue it, or remove it to begin anew"
        )
    with partial.open("r+b") as file:
        file.truncate(sum(len(line) + 1 for line in lines))
    return [line.decode() for line in lines[1:]]


def finish(output: Path) -> None:
    """The lines without the first one, in the place of their own."""
    partial, draft = partial_of(output), output.with_name(f".{output.name}.whole")
    with partial.open("rb") as rows, draft.open("wb") as file:
        next(rows)
        file.writelines(rows)
    draft.replace(output)
    partial.unlink()
