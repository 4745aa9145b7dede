"""`opdlm doctor MODEL --plan`: what a large run would take, on GPUs that are not here."""

import math
from argparse import Namespace
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from opdlm.cli.options import Parser
from opdlm.cli.terminal import duration, make_console, print_json, quiet_libraries, size
from opdlm.errors import UsageError


def add_flags(parser: Parser) -> None:
    """Those of a plan; they are refused without --plan."""
    group = parser.add_argument_group("with --plan: a run on GPUs that are not here")
    group.add_argument("--plan", action="store_true", help="tokens, FLOPs, memory and hours; nothing is loaded or run")
    group.add_argument("--gpus", type=int, metavar="N", help="how many (default: 8)")
    group.add_argument("--kind", metavar="GPU", help="a100, h100, h200, a6000, l40s or rtx4090 (default: h100)")
    group.add_argument("--recipe", metavar="NAME", help="default: the paper's for that size")
    group.add_argument("--prompt-count", type=int, metavar="N", help="prompts (default: the paper's 61,816)")
    group.add_argument("--mean-response", type=int, metavar="N", help="tokens (default: the paper's for that size)")
    group.add_argument("--tokens-per-forward", type=float, metavar="X", help="of rollouts (default: the paper's 1.44)")
    group.add_argument("--assume-mfu", type=float, metavar="X", help="share of the peak in training (default: 0.35)")
    group.add_argument("--assume-forward-ms", type=float, metavar="X", help="least time of a forward (default: 30)")
    group.add_argument(
        "--rates", nargs="+", metavar="FILE", help="results of benchmarks/gpu.py in place of assumptions"
    )


_FLAGS = (
    *("gpus", "kind", "recipe", "prompt_count", "mean_response", "tokens_per_forward"),
    *("assume_mfu", "assume_forward_ms", "rates"),
)


def check_flags(arguments: Namespace, settings: Collection[str]) -> None:
    """Raises UsageError for a flag of the plan without --plan, one that says nothing to a plan, or one out of range.

    `settings`: those of a conversion that were named.
    """
    if arguments.plan:
        others = (
            *settings,
            *(name for name in ("lossless", "response_tokens", "lora_rank") if getattr(arguments, name)),
        )
        for name in others:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} says nothing to a plan; leave it out, or write a recipe and name that")
    for name in _FLAGS:
        flag, value = "--" + name.replace("_", "-"), getattr(arguments, name)
        if value is not None and not arguments.plan:
            raise UsageError(f"{flag} is for a plan; add --plan")
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise UsageError(f"{flag} must be a number above 0; give another")
    if arguments.assume_mfu is not None and arguments.assume_mfu > 1:
        raise UsageError("--assume-mfu is a share of the peak; give at most 1")


def run(arguments: Namespace) -> int:
    """Prints the plan."""
    quiet_libraries()
    from opdlm.distill.planning import Wanted, planned

    wanted = Wanted(
        model=arguments.model,
        gpus=arguments.gpus or 8,
        kind=arguments.kind or "h100",
        recipe=arguments.recipe,
        prompts=arguments.prompt_count,
        prompt_tokens=arguments.prompt_tokens,
        response_tokens=arguments.mean_response,
        tokens_per_forward=arguments.tokens_per_forward,
        mfu=arguments.assume_mfu,
        forward_ms=arguments.assume_forward_ms,
        files=tuple(map(Path, arguments.rates or ())),
    )
    found = planned(wanted)
    if arguments.json:
        print_json(found)
    else:
        show(found, make_console())
    return 0


def show(found: dict[str, Any], console: Console) -> None:
    """The plan as text."""
    job, memory, rates = found["job"], found["memory"], found["rates"]
    of = f"{found['parameters']:,} parameters, recipe {found['recipe']}, {found['gpus']} x {found['kind']}"
    console.print(f"{found['model']}: {of}", markup=False, highlight=False)
    tokens = f"{found['response_tokens'] / 1e6:.1f} million response tokens"
    console.print(
        f"{job['prompts']:,} prompts of {job['prompt_tokens']} tokens, responses of {job['response_tokens']:,} on "
        f"average: {tokens}, {found['rollouts']:,} rollouts, {found['updates']:,} updates",
        soft_wrap=True,
        highlight=False,
    )
    if found["working_gpus"] < found["gpus"]:
        console.print(
            f"Only {found['working_gpus']} of {found['gpus']} GPUs work in an update: it has that many rows. Raise "
            "rows_per_update and prompts_per_rollout in a recipe of your own to use them, which is another run.",
            soft_wrap=True,
            highlight=False,
        )
    table = Table("part", "FLOPs", "hours", box=None, pad_edge=False)
    for part, hours in found["hours"].items():
        flops = found["flops"].get(part)
        table.add_row(part, f"{flops:.3g}" if flops else "", f"{hours:.2f}")
    console.print(table)
    total = found["hours"]["total"]
    console.print(f"wall {duration(3600 * total)}, {found['gpus'] * total:,.0f} GPU hours", highlight=False)
    rows = f"{memory['rows']} row{'s' if memory['rows'] > 1 else ''} at the longest response in one backward pass"
    console.print(f"memory of each GPU, {rows}:")
    for name, value in memory_parts(memory["parts"]):
        console.print(f"  {name:28} {size(value)}", highlight=False)
    for name in ("replicated", "sharded"):
        verdict = "fits" if found["fits"][name] else "does not fit"
        what = "all state on each GPU" if name == "replicated" else f"state in {found['gpus']} shards"
        console.print(f"{what}: {size(memory[name])}, {verdict} in {size(found['gpu']['memory'])}", highlight=False)
    for way in found["ways"]:
        verdict = "fits" if way["fits"] else "does not fit"
        console.print(f"  one GPU, {way['name']}: {size(way['bytes'])}, {verdict}", highlight=False)
    console.print("rates of one GPU:")
    for name, source in rates["sources"].items():
        console.print(f"  {name:10} {source}", markup=False, highlight=False, soft_wrap=True)


def memory_parts(parts: dict[str, float]) -> Iterator[tuple[str, float]]:
    """(what, bytes) of the parts that are summed up."""
    yield "weights", parts["weights"]
    yield "their bfloat16 copies", parts["copy"]
    yield "gradients", parts["gradient"]
    yield "AdamW's moments", parts["moment"]
    yield "teacher", parts["teacher"]
    yield "activations", parts["activation"]
    yield "LM head, a chunk at a time", parts["head"]
    yield "or: cache of the rollouts", parts["rollout_cache"]
