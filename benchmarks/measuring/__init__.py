"""What every benchmark shares: the record of one run under `benchmarks/results/`."""

import json
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent.parent / "results"


def row(
    metric: str,
    unit: str,
    ours: Sequence[float],
    rival: Sequence[float],
    rival_name: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """One comparison, from paired measurements of the same run.

    `ours` and `rival` are medians, `ratio` is the median of the pairs' ratios ours / rival with its `min` and `max`,
    `n` the number of pairs.
    """
    ratios = [a / b for a, b in zip(ours, rival, strict=True)]
    return {
        "metric": metric,
        "unit": unit,
        "ours": _short(statistics.median(ours)),
        "rival": _short(statistics.median(rival)),
        "rival_name": rival_name,
        "ratio": _short(statistics.median(ratios)),
        "n": len(ratios),
        "min": _short(min(ratios)),
        "max": _short(max(ratios)),
        "settings": dict(settings),
    }


def write(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    note: str = "",
    folder: Path = RESULTS,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `NAME.json`: the rows with the hardware, the versions, the commit, the command, and `more`."""
    record = {
        "benchmark": name,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_anywhere, sys.argv[1:])]),
        **({"note": note} if note else {}),
        **(more or {}),
        "rows": list(rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def _anywhere(argument: str) -> str:
    """A command is to be given elsewhere, where a place of this machine is none."""
    return "PATH" if Path(argument).is_absolute() else argument


def hardware() -> str:
    """The processor, the threads that torch uses, and the GPU if there is one."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor}, {torch.get_num_threads()} threads, {gpu}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def commit() -> str:
    """The commit that is checked out; "-modified" if the code under it is not as committed, "unknown" without git."""
    here = Path(__file__).parent
    if shutil.which("git") is None or subprocess.run(["git", "rev-parse"], cwd=here, capture_output=True).returncode:
        return "unknown"  # a copy of the tree, as on a machine that was lent for an hour

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/benchmarks/*.py")
    return git("rev-parse", "HEAD") + ("-modified" if changed else "")


def _short(number: float) -> float:
    return float(f"{number:.4g}")
