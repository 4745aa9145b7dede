"""How a command shares the processor with other programs. Set before torch loads: it reads this once.

The threads of one operation wait for each other. On an idle machine they do best to spin meanwhile, as they do by
default. Where another program has a core, the thread that is kept waiting makes all others burn theirs: then there are
only as many threads as free cores, and they sleep while they wait (`benchmarks/contention.py`).
"""

import os
import time
from collections.abc import MutableMapping
from pathlib import Path

_STAT = Path("/proc/stat")  # Linux; elsewhere everything stays as it is
_LOOK_S = 0.1
_IDLE_COLUMNS = (3, 4)  # idle, and waiting for a disk


def share(environment: MutableMapping[str, str] = os.environ) -> None:
    """On a busy machine: fewer threads, which wait passively. What the user has set stays."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_cores()
    if free is None or free >= usable:
        return
    environment.setdefault("OMP_NUM_THREADS", str(max(1, free)))
    environment.setdefault("OMP_WAIT_POLICY", "passive")


def free_cores() -> int | None:
    """Cores that nobody uses now, to the nearest; None where the system does not say."""
    if not _STAT.is_file():
        return None
    idle_before, all_before = _ticks()
    time.sleep(_LOOK_S)
    idle_after, all_after = _ticks()
    share_idle = (idle_after - idle_before) / max(1, all_after - all_before)
    return round(share_idle * (os.cpu_count() or 1))


def _ticks() -> tuple[int, int]:
    """Clock ticks of all cores together since the start of the system: idle ones, and all."""
    fields = [int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields[column] for column in _IDLE_COLUMNS), sum(fields)
