"""What all commands share: the console, quiet libraries, numbers for people."""

import json
import logging
import os
import sys
from io import TextIOWrapper

from rich.console import Console

_UNLIMITED = 10_000  # what is no terminal has no edge
_PICTURE_WIDTH = 144


class _Console(Console):
    """rich ends the program by itself where its reader is gone; `opdlm.cli.main` decides that here."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def take_any_character() -> None:
    """Where the terminal's encoding lacks a character, its escape is shown in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(record: object) -> None:
    """One line; escaped where the terminal's encoding is not UTF-8, which JSON otherwise is."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # one that holds text has none
    print(json.dumps(record, ensure_ascii=encoding.lower() not in ("utf-8", "utf8")))


def make_console(stderr: bool = False, record: bool = False, quiet: bool = False) -> Console:
    """rich's console; without an edge where the output is no terminal, so that nothing is cut. `record`: a picture."""
    stream = sys.stderr if stderr else sys.stdout
    elsewhere = _PICTURE_WIDTH if record else _UNLIMITED
    width = None if stream.isatty() else elsewhere
    return _Console(stderr=stderr, highlight=False, width=width, record=record, quiet=quiet)


def quiet_libraries() -> None:
    """Keeps the progress bars and remarks of the model libraries out of our output. Errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bars()
    disable_progress_bar()
    set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft loads it; it remarks on kernels that nobody needs


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole / 86400:.0f} days"


def counted(count: int, what: str) -> str:
    """`1 rollout`, `20 rollouts`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes with a unit: `5.2 MB`, `31 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
