"""Studies of the method on the embedded AR model, on a CPU. Without a command: what there is to run.

    python benchmarks/study.py run method --seeds 0 1 2 --jobs 2      all arms of a question, one thread each
    python benchmarks/study.py summary method                         tables, a result file, a figure

A run converts the embedded AR model as its arm says and writes one small file; arms that several questions share are
run once. Arms whose file exists are skipped, and one that was stopped goes on from its newest checkpoint, so a stopped
command is simply given again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import measuring
from studies import arm
from studies.driver import run_all
from studies.questions import ARMS, BASE, QUESTIONS
from studies.record import Effort

ARM_FILES = measuring.RESULTS / "studies"
FIGURES = Path(__file__).parent.parent / "docs" / "studies"


def main() -> int:
    args = arguments()
    if args.command == "run":
        return run(args)
    if args.command == "arm":
        return run_one(args)
    if args.command == "summary":
        return summary(args)
    return plan()


def plan() -> int:
    """Lists questions and arms."""
    for key, question in QUESTIONS.items():
        print(f"{key}: {question.title}")
        for name in question.arms:
            print(f"    {name:24} {ARMS[name].reason}")
    print(f"{len(ARMS)} arms of {BASE['rollouts'] * BASE['prompts_per_rollout']:,} prompts each; see --help")
    return 0


def run(args: argparse.Namespace) -> int:
    """Runs the arms of one or several questions."""
    names = list(dict.fromkeys(name for key in args.question for name in QUESTIONS[key].arms))
    unknown = sorted(set(args.arms or ()) - set(names))
    if unknown:
        raise SystemExit(f"no such arms: {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [name for name in names if not args.arms or name in args.arms]
    well = run_all(
        arm.definition, chosen, args.seeds, effort(args), args.output, Path(__file__), args.jobs, args.minutes
    )
    return 0 if well else 1


def run_one(args: argparse.Namespace) -> int:
    """Runs one arm, in this process."""
    record = arm.run(args.name, args.seed, effort(args), args.output)
    end = record["curve"][-1]
    results = ", ".join(
        f"{decoding} {result['accuracy']:.1%} at {result['tokens_per_forward']:.2f}"
        for decoding, result in record["final"].items()
    )
    print(
        f"{args.name} seed {args.seed}: {results}; {end['tokens_trained']:,.0f} tokens, {end['flops']:.2g} FLOPs, "
        f"{end['seconds']:.0f} s of training, {record['seconds']:.0f} s in all",
        flush=True,
    )
    return 0


def summary(args: argparse.Namespace) -> int:
    """Tables on the console, a result file and a figure for each question."""
    from studies.summary import summarise  # imports matplotlib

    for key in args.question:
        print(summarise(key, args.output, args.results, args.figures))
    return 0


def effort(args: argparse.Namespace) -> Effort:
    return Effort(args.scale, args.per_family)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    runs = commands.add_parser("run", help="run the arms of questions")
    runs.add_argument("question", nargs="+", choices=QUESTIONS)
    runs.add_argument("--arms", nargs="+", metavar="NAME", help="only these")
    runs.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    runs.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, one thread each (1)")
    runs.add_argument("--minutes", type=float, metavar="M", help="start no run later than that")
    one = commands.add_parser("arm", help="run one arm in this process")
    one.add_argument("name", choices=ARMS)
    one.add_argument("--seed", type=int, default=0, metavar="N")
    for command in (runs, one):
        command.add_argument("--scale", type=float, default=1.0, metavar="X", help="factor of the rollouts (1)")
        command.add_argument("--per-family", type=int, default=250, metavar="N", help="final questions (250)")
    tells = commands.add_parser("summary", help="tables, result file and figure of questions")
    tells.add_argument("question", nargs="+", choices=QUESTIONS)
    tells.add_argument("--results", type=Path, default=measuring.RESULTS, metavar="DIR")
    tells.add_argument("--figures", type=Path, default=FIGURES, metavar="DIR")
    for command in (runs, one, tells):
        command.add_argument("--output", type=Path, default=ARM_FILES, metavar="DIR", help="folder of the arms' files")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
