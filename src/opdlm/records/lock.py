"""The lock on a run's folder: one process at a time writes it. The system lets go of it when that process ends."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from opdlm.errors import RunInUseError, StorageError

_LOCK, _HOLDER = ".lock", ".lock-holder.json"
FILES = (_LOCK, _HOLDER)
"""What is locked; and who did so, for the message alone: a killed process leaves it behind."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the folder, which must exist, for as long as the body runs.

    Raises:
        RunInUseError: another process, or another thread of this one, holds it; the message says which and since when.
        StorageError: the folder cannot be written.
    """
    lock, holder = FileLock(folder / _LOCK, thread_local=False), folder / _HOLDER
    us = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().strftime("%Y-%m-%d %H:%M:%S")}
    try:
        lock.acquire(blocking=False)
        holder.write_text(json.dumps(us) + "\n", encoding="utf-8")
    except Timeout as error:
        raise RunInUseError(f"{folder} is in use by {_who(holder)}; wait for its end, or stop it first") from error
    except OSError as error:
        lock.release()
        raise StorageError(
            f"cannot write to {folder} ({error.strerror}); make room there, or let it be written"
        ) from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    """The process that holds the folder, as far as it said so."""
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, TypeError, KeyError):  # it is only just writing this
        return "another process"
