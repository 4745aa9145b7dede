"""Runs arms, each in a process of its own with one thread."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.record import Effort, is_done

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


Definition = Callable[[str, int, Effort], dict[str, Any]]
"""(arm, seed, effort) -> all that decides its result."""


@dataclass(frozen=True)
class Job:
    """An arm with a seed, and its place in the queue."""

    name: str
    seed: int
    place: str

    def start(self, script: Path, effort: Effort, folder: Path) -> subprocess.Popen:
        options = [f"--scale={effort.scale}", f"--per-family={effort.per_family}", f"--output={folder}"]
        command = [sys.executable, str(script), "arm", self.name, f"--seed={self.seed}", *options]
        return subprocess.Popen(command, env={**os.environ, **_ONE_THREAD})


def run_all(
    definition: Definition,
    names: Sequence[str],
    seeds: Sequence[int],
    effort: Effort,
    folder: Path,
    script: Path,
    jobs: int,
    minutes: float | None,
) -> bool:
    """All arms with the first seed, then with the next; those whose files exist are skipped.

    Args:
        definition: of an arm; its file is known by it.
        script: its command `arm` runs one arm.
        jobs: arms at once.
        minutes: no arm is started later than that.

    Returns:
        Whether all went well (arms that time did not allow aside).
    """
    wanted = [(name, seed) for seed in seeds for name in names]
    todo = [pair for pair in wanted if not is_done(folder, definition(*pair, effort))]
    print(f"{len(todo)} runs, {len(wanted) - len(todo)} done before", flush=True)
    waiting = [Job(*pair, place=f"{i}/{len(todo)}") for i, pair in enumerate(todo, start=1)]
    running: dict[subprocess.Popen, Job] = {}
    failed, began = [], time.monotonic()
    try:
        while waiting or running:
            late = minutes is not None and time.monotonic() - began > 60 * minutes
            if late and waiting:
                print(f"time is up: {len(waiting)} runs left for another time", flush=True)
                waiting.clear()
            while waiting and len(running) < jobs:
                job = waiting.pop(0)
                print(f"{job.place} {job.name} seed {job.seed}: started", flush=True)
                running[job.start(script, effort, folder)] = job
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                job = running.pop(process)
                if process.returncode:
                    failed.append(job)
                    print(f"{job.place} {job.name} seed {job.seed}: failed ({process.returncode})", flush=True)
    finally:
        for process in running:
            process.terminate()
    return not failed
