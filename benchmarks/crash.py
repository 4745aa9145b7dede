"""Runs that are killed with SIGKILL, again and again: what do they lose?

    python benchmarks/crash.py                 20 kills
    python benchmarks/crash.py --quick         3 kills, not recorded
    python benchmarks/crash.py --ranks 2       each kill hits one of two processes of a run (torchrun)

A short conversion of the embedded model, as a user starts it, is killed at a random moment within a phase: while it
writes text (rollout), learns (update), or writes a checkpoint (writing, in a thread beside the other two). Its newest
checkpoint is compared with its checksums, and it is resumed; after some kills it may end. Then its weights are compared
bit by bit with those of a run that nobody killed, and its metrics line by line, clocks and memory aside. Full training
and lossless conversion take turns.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import measuring
import torch
from safetensors.torch import load_file

from opdlm.records import checksums
from opdlm.records.run_folder import RunFolder
from opdlm.tiny.families import mixed
from opdlm.tiny.weights import ar_model_path

PHASES = ("rollout", "update", "writing")
KINDS = {"opd": [], "lossless": ["--lossless"]}
MARK = "@phase"
HELD_OUT = 4
NONE = "none"


@dataclass
class Life:
    """One process of a run, from its start to its end.

    Attributes:
        seconds: phase -> of each time that it was gone through. open: phases that had begun and not ended.
        killed: in which phase; None if it came to its own end.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    open: set[str] = field(default_factory=set)
    killed: str | None = None


@dataclass
class Kill:
    """One kill and what came of it. `state`: phases that were open. `intact`: the newest checkpoint; None without any.
    `weights`, `metrics`: whether the run ended as one that nobody killed."""

    kind: str
    phase: str
    state: list[str]
    checkpoint: str
    intact: bool | None
    weights: bool = False
    metrics: bool = False


@dataclass
class Bench:
    """What all runs share. `reference`: kind -> the folder of the run that nobody kills, and its life."""

    args: argparse.Namespace
    folder: Path
    rng: random.Random
    reference: dict[str, tuple[Path, Life]] = field(default_factory=dict)

    def words(self, kind: str, run: Path) -> list[str]:
        """Starts the run, or goes on with it."""
        if (run / "config.toml").is_file():
            return ["convert", "--resume", str(run)]
        args = self.args
        flags = f"""--device cpu --threads 1 --rollouts {args.rollouts} --prompts-per-rollout 8 --rows-per-update 4
            --rows-per-micro-batch 4 --response-length.start 24 --response-length.end 24 --save-every-rollouts 1
            --eval-every 2 --eval-count {HELD_OUT} --keep-best"""
        places = ["--prompts", str(self.folder / "prompts.jsonl"), "--output", str(run)]
        return ["convert", str(ar_model_path()), *KINDS[kind], *places, *flags.split()]

    def killed_run(self, kind: str, phases: Iterator[str], kills: int, name: str) -> list[Kill]:
        """A run that is killed so often, if it does not end before."""
        run, found = self.folder / name, list[Kill]()
        while True:
            target = next(phases) if len(found) < kills else None
            life = self.live(kind, run, target)
            if life.killed is None:
                break
            folder = RunFolder(run)
            newest = folder.latest() if folder.checkpoints.is_dir() else None
            intact = None if newest is None else checksums.there(newest) and checksums.damage(newest) is None
            found.append(Kill(kind, life.killed, sorted(life.open), newest.name if newest else NONE, intact))
            print(f"  {kind}, killed in {life.killed}; newest checkpoint {found[-1].checkpoint}", flush=True)
        whole = self.reference[kind][0]
        verdict = {"weights": same_weights(whole, run), "metrics": numbers(whole) == numbers(run)}
        print(f"  {kind}: ended, {verdict}", flush=True)
        return [replace(one, **verdict) for one in found]

    def live(self, kind: str, run: Path, target: str | None) -> Life:
        """One process, or several ranks, until the end or a kill in the phase `target`, the first to third time."""
        life, times, ranks = Life(), self.rng.randint(1, 3), self.args.ranks
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launcher, __file__, "--child", *self.words(kind, run)]
        began: dict[str, float] = {}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            pids, others = set[int](), list[str]()
            for line in process.stdout:
                if not line.startswith(MARK):
                    others.append(line)
                    continue
                _, phase, event, clock, pid = line.split()
                pids.add(int(pid))
                if event == "begin":
                    began[phase], life.open = float(clock), life.open | {phase}
                    times -= phase == target
                    if phase == target and times == 0:
                        typical = self.reference[kind][1].seconds[phase]
                        time.sleep(self.rng.random() * sum(typical) / len(typical))
                        os.kill(self.rng.choice(sorted(pids)), signal.SIGKILL)
                        life.killed, target = phase, None
                elif phase in began:
                    life.seconds[phase].append(float(clock) - began[phase])
                    life.open.discard(phase)
        if life.killed is None and process.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{''.join(others)}")
        return life


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2:]))
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="opdlm-crash-") as name:
        bench = Bench(args, Path(name), random.Random(args.seed))
        prompts = itertools.islice(mixed(0, "conversion"), 8 * args.rollouts + HELD_OUT)
        lines = (json.dumps({"prompt": one.prompt}) + "\n" for one in prompts)
        (bench.folder / "prompts.jsonl").write_text("".join(lines))
        for kind in KINDS:
            run = bench.folder / f"whole-{kind}"
            bench.reference[kind] = run, bench.live(kind, run, None)
            means = {phase: sum(taken) / len(taken) for phase, taken in bench.reference[kind][1].seconds.items()}
            print(f"{kind}, not killed: seconds by phase {means}", flush=True)
        kills: list[Kill] = []
        phases, kinds = itertools.cycle(PHASES), itertools.cycle(KINDS)
        for number in itertools.count():
            wanted = min(args.kills_per_run, args.kills - len(kills))
            if not wanted:
                break
            kills += bench.killed_run(next(kinds), phases, wanted, f"killed-{number}")
    bad = [one for one in kills if not (one.weights and one.metrics) or one.intact is False]
    print(f"{len(kills)} kills, {len(bad)} with a loss: {bad}")
    if not args.quick:
        more = {"kills": [vars(one) for one in kills]}
        name = "crash" if args.ranks == 1 else f"crash_ranks_{args.ranks}"
        print(f"written: {measuring.write(name, list(rows_of_record(kills, args)), more=more)}")
    sys.exit(bool(bad))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kills conversions and compares what is left with a run left alone.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kills-per-run", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=6, help="of each run, with a checkpoint after each")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run; each kill hits one of them")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--quick", action="store_true", help="3 kills, not recorded")
    args = parser.parse_args()
    if args.quick:
        args.kills = 3
    return args


def rows_of_record(kills: list[Kill], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    settings = {name: getattr(args, name) for name in ("ranks", "rollouts", "kills_per_run", "seed")}
    for kind, phase in itertools.product(KINDS, PHASES):
        those = [one for one in kills if (one.kind, one.phase) == (kind, phase)]
        yield {
            "metric": "kills after which the run resumed and ended as if nobody had killed it",
            "unit": "kill",
            "kills": len(those),
            "with_a_checkpoint": sum(one.checkpoint != NONE for one in those),
            "newest_checkpoint_intact": sum(one.intact is True for one in those),
            "weights_bit_equal": sum(one.weights for one in those),
            "metrics_without_gap_or_double": sum(one.metrics for one in those),
            "settings": {"method": kind, "phase": phase, **settings},
        }


def same_weights(whole: Path, run: Path) -> bool:
    """Whether all tensors of the finished models have the same bits."""
    files = [sorted(path.name for path in (one / "model").glob("*.safetensors")) for one in (whole, run)]
    if files[0] != files[1] or not files[0]:
        return False
    pairs = [(load_file(whole / "model" / name), load_file(run / "model" / name)) for name in files[0]]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def numbers(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, but for clocks and memory: a gap or a double is another list."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for part in (line, line["total"]):
            part.pop("seconds")
        line.pop("peak_memory_bytes")
    return lines


# --- in the process that is killed --------------------------------------------------------------------------------


def child(words: list[str]) -> int:
    """`opdlm WORDS`, which says when a phase begins and ends."""
    from opdlm.cli.main import main as opdlm
    from opdlm.distill import loop
    from opdlm.records.checkpoints import Checkpoints

    step, save = loop.training_step, Checkpoints.save_state

    def training_step(batch: Any, plan: Any, *rest: Any) -> Any:
        def write(batch: Any) -> Any:
            with said("rollout"):
                written = plan.write(batch)
            say("update", "begin")  # all updates of the rollout
            return written

        counts = step(batch, replace(plan, write=write), *rest)
        say("update", "end")
        return counts

    def save_state(*args: Any, **kwargs: Any) -> Path:
        with said("writing"):
            return save(*args, **kwargs)

    loop.training_step, Checkpoints.save_state = training_step, save_state
    return opdlm(words)


@contextmanager
def said(phase: str) -> Iterator[None]:
    say(phase, "begin")
    yield
    say(phase, "end")


def say(phase: str, event: str) -> None:
    """In one write, past Python's files: a thread says something too."""
    os.write(1, f"\n{MARK} {phase} {event} {time.perf_counter()} {os.getpid()}\n".encode())


if __name__ == "__main__":
    main()
