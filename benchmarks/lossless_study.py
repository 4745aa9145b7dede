"""Studies of lossless conversion on the embedded AR model, on a CPU. Without a command: the arms.

    python benchmarks/lossless_study.py run --seeds 0 1 2 --jobs 2        one thread each; what is done is skipped
    python benchmarks/lossless_study.py summary                           a table and results/study_lossless.json

Each arm changes one thing of a base, the recipe `lossless` with 32 rows an update. No arm can change the text that is
written: what differs is how many tokens a forward gives.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import measuring
import torch
from studies.driver import run_all
from studies.lossless_arms import ARMS
from studies.lossless_run import definition, run
from studies.record import Effort, path_of

FOLDER = measuring.RESULTS / "studies" / "lossless"
BASE = "base"


def main() -> int:
    args = arguments()
    if args.command == "run":
        names = args.arms or list(ARMS)
        effort = Effort(args.scale, args.per_family)
        well = run_all(definition, names, args.seeds, effort, args.output, Path(__file__), args.jobs, args.minutes)
        return 0 if well else 1
    if args.command == "arm":
        record = run(args.name, args.seed, Effort(args.scale, args.per_family), args.output)
        decoded, costs = record["decoded"], record["costs"]
        print(
            f"{args.name} seed {args.seed}: {decoded['every']['tokens_per_forward']:.2f} tokens per forward "
            f"({decoded['last']['tokens_per_forward']:.2f} with a window behind the last draft alone), "
            f"{decoded['every']['same_text']} of {decoded['every']['questions']} texts the same, "
            f"{costs['tokens_trained']:,} tokens, {costs['seconds']:.0f} s of {record['seconds']:.0f}",
            flush=True,
        )
        return 0
    if args.command == "summary":
        print(summary(args.output))
        return 0
    for name, arm in ARMS.items():
        print(f"{name:24} {arm.reason}")
    return 0


# --- summary ------------------------------------------------------------------------------------------------------


def summary(folder: Path) -> str:
    """A markdown table of all arms; writes the result file."""
    torch.set_num_threads(1)  # as the runs had it
    seeds = range(100)
    runs = {
        name: [json.loads(path.read_text("utf-8")) for seed in seeds if (path := path_of(folder, name, seed)).exists()]
        for name in ARMS
    }
    runs = {name: records for name, records in runs.items() if records}
    if BASE not in runs:
        raise SystemExit(f"{folder} holds no run of {BASE}; see the command `run`")
    path = measuring.write("study_lossless", list(rows(runs)), "ours, rival: means over seeds; ratio: of them.")
    heads = ["arm", "seeds", "a window behind each draft", "behind the last alone", "by task", "texts the same"]
    heads += ["first choice right, place by place", "second choice", "tokens", "seconds"]
    lines = [_line(heads), _line(["---"] * len(heads)), *(_line(cells(name, found)) for name, found in runs.items())]
    return "\n".join(lines) + f"\n\nwritten: {path}"


def cells(name: str, records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of one arm: means over seeds, with the smallest and the largest."""
    decoded = [record["decoded"] for record in records]
    yield f"`{name}`"
    yield str(len(records))
    for way in ("every", "last"):
        values = [one[way]["tokens_per_forward"] for one in decoded]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        yield f"{fmean(values):.2f}{spread}"
    families = decoded[0]["every"]["by_family"]
    yield ", ".join(f"{k} {fmean(one['every']['by_family'][k] for one in decoded):.2f}" for k in families)
    yield f"{sum(one['every']['same_text'] for one in decoded)} of {sum(one['every']['questions'] for one in decoded)}"
    for rank in ("first", "second"):
        yield _shares([one["behind_every_token"][rank] for one in decoded])
    yield f"{fmean(record['costs']['tokens_trained'] for record in records):,.0f}"
    yield f"{fmean(record['costs']['seconds'] for record in records):,.0f}"


def rows(runs: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Rows of the result file: every arm against the base."""
    for name, records in runs.items():
        for way, what in (("every", "a window behind each draft"), ("last", "behind the last alone")):
            values = [record["decoded"][way]["tokens_per_forward"] for record in records]
            rival = fmean(record["decoded"][way]["tokens_per_forward"] for record in runs[BASE])
            settings = {"arm": name, "windows": what, "seeds": [record["definition"]["seed"] for record in records]}
            yield measuring.row("tokens per forward", "token", values, [rival] * len(values), BASE, settings)
        for place, shares in enumerate(zip(*(r["decoded"]["every"]["acceptance"] for r in records), strict=True), 1):
            settings = {"arm": name, "place": place}
            yield measuring.row("acceptance in decoding", "share", shares, [1.0] * len(shares), "all", settings)
        same = [record["decoded"]["every"]["same_text"] for record in records]
        asked = [record["decoded"]["every"]["questions"] for record in records]
        yield measuring.row("same text as generate", "text", same, asked, "transformers AR", {"arm": name})


def _shares(found: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"{100 * fmean(shares):.0f}" for shares in zip(*found, strict=True)) + " %"


def _line(values: Any) -> str:
    return f"| {' | '.join(values)} |"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    runs = commands.add_parser("run", help="run arms")
    runs.add_argument("--arms", nargs="+", metavar="NAME", choices=ARMS, help="only these")
    runs.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    runs.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, one thread each (1)")
    runs.add_argument("--minutes", type=float, metavar="M", help="start no run later than that")
    one = commands.add_parser("arm", help="run one arm in this process")
    one.add_argument("name", choices=ARMS)
    one.add_argument("--seed", type=int, default=0, metavar="N")
    for command in (runs, one):
        command.add_argument("--scale", type=float, default=1.0, metavar="X", help="factor of the rollouts (1)")
        command.add_argument("--per-family", type=int, default=100, metavar="N", help="questions of each family (100)")
    tells = commands.add_parser("summary", help="a table and the result file")
    for command in (runs, one, tells):
        command.add_argument("--output", type=Path, default=FOLDER, metavar="DIR", help="folder of the arms' files")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
