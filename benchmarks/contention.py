"""How a conversion on a CPU degrades where other programs want the processor too.

    python benchmarks/contention.py

A short conversion of the embedded model (`opdlm convert`, as a user starts it) runs in a process of its own, on an idle
machine and beside busy loops that each take one core: with the threads that opdlm chooses when it starts
(`cli/processor.py`), with torch's own, and with one. Rates are response tokens per second of training, the first
rollouts left out.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import measuring

from opdlm.tiny.families import mixed
from opdlm.tiny.weights import ar_model_path

CHOICES: dict[str, dict[str, str]] = {
    "opdlm's own": {},
    # as many threads as cores, which spin for as long as libgomp lets them where nobody sets a policy
    "torch's own": {"OMP_NUM_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": "300000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
RIVAL = "torch's own"
WARM_UP = 2  # rollouts that are not counted
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with whoever started it


def main() -> None:
    args = arguments()
    rates: dict[tuple[str, int], list[float]] = {}
    for turn in range(args.repeats):
        for busy, choice in itertools.product(args.busy, CHOICES if turn % 2 == 0 else reversed(CHOICES)):
            rates.setdefault((choice, busy), []).append(rate(choice, busy, args.rollouts))
            print(f"{choice}, {busy} busy: {rates[choice, busy][-1]:,.0f} tokens/s", flush=True)
    rows = list(rows_of_record(rates, args))
    for choice in CHOICES:
        shown = ", ".join(f"{busy} busy {median(rates[choice, busy]):,.0f}" for busy in args.busy)
        print(f"{choice}: {shown}")
    if not args.quick:
        print(f"written: {measuring.write('contention', rows)}")


def rows_of_record(rates: dict[tuple[str, int], list[float]], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each choice against torch's default beside as many busy loops, and against itself on an idle machine."""
    for (choice, busy), found in rates.items():
        settings = {"choice": choice, "busy_processes": busy, "cores": os.cpu_count(), "rollouts": args.rollouts}
        yield measuring.row("training", "token/s", found, rates[RIVAL, busy], RIVAL, settings)
        if busy:
            yield measuring.row("training", "token/s", found, rates[choice, 0], "the same on an idle machine", settings)


def rate(choice: str, busy: int, rollouts: int) -> float:
    """Response tokens per second of one conversion beside `busy` busy loops."""
    with tempfile.TemporaryDirectory() as folder, competitors(busy):
        prompts = Path(folder) / "prompts.jsonl"
        problems = itertools.islice(mixed(0, "conversion"), 64 * (rollouts + WARM_UP))
        prompts.write_text("".join(json.dumps({"prompt": problem.prompt}) + "\n" for problem in problems))
        run = Path(folder) / "run"
        options = ["--prompts", str(prompts), "--output", str(run), "--recipe", "small", "--prompts-per-rollout", "64"]
        command = [sys.executable, "-m", "opdlm", "convert", str(ar_model_path()), *options]
        others = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
        subprocess.run(command, env=others | CHOICES[choice], check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
    return sum(line["tokens_trained"] for line in lines) / sum(sum(line["seconds"].values()) for line in lines)


@contextmanager
def competitors(count: int) -> Iterator[None]:
    """As many processes that do nothing but take a core."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat of few rollouts, nothing is written")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="busy loops (0 1 2)")
    parser.add_argument("--rollouts", type=int, default=8, metavar="N", help="rollouts that are timed (8)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each (3)")
    chosen = parser.parse_args(given)
    if chosen.quick:
        chosen.rollouts, chosen.repeats = 2, 1
    return chosen


if __name__ == "__main__":
    main()
