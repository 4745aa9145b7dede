"""Plans of the paper's conversions on 8 and 64 H100, for docs/large_runs.md. Nothing is measured: rates are assumed.

python benchmarks/plans.py
"""

import json
from typing import Any

import measuring

from opdlm.distill.planning import Wanted, planned
from opdlm.models.shapes import NAMED_SHAPES

GPUS = (8, 64)


def main() -> None:
    """Writes `results/plans.json` and prints the tables of the page."""
    plans = [planned(Wanted(shape, gpus)) for shape in NAMED_SHAPES for gpus in GPUS]
    measuring.write("plans", plans, note="assumed rates, see each row's rates.sources; no measurement")
    print("| model | GPUs | response tokens | FLOPs | rollouts | passes | rest | hours | GPU hours |")
    for one in plans:
        print(hours(one))
    print("| model | state | copies | activations | LM head | on each GPU | in shards |")
    for one in plans:
        print(memory(one))
    print("| model | way on one GPU | bytes | fits |")
    for one in plans:
        if one["gpus"] == GPUS[0]:
            for way in one["ways"]:
                print(f"| {one['model']} | {way['name']} | {giga(way['bytes'])} | {'yes' if way['fits'] else 'no'} |")
    print(json.dumps(plans[0]["rates"]["sources"], indent=1))


def hours(one: dict[str, Any]) -> str:
    spent = one["hours"]
    passes = spent["teacher"] + spent["student"]
    rest = spent["optimiser"] + spent["exchange"] + spent["checkpoints"]
    numbers = (spent["rollouts"], passes, rest, spent["total"], one["gpus"] * spent["total"])
    tokens = f"{one['response_tokens'] / 1e6:.0f} million"
    shown = " | ".join(f"{number:.2f}" if number < 10 else f"{number:.0f}" for number in numbers)
    return f"| {one['model']} | {one['gpus']} | {tokens} | {one['flops']['total']:.2g} | {shown} |"


def memory(one: dict[str, Any]) -> str:
    parts = one["memory"]["parts"]
    state = sum(parts[name] for name in ("weights", "gradient", "moment", "teacher"))
    shown = [state, parts["copy"], parts["activation"], parts["head"], one["memory"]["replicated"]]
    numbers = " | ".join(map(giga, [*shown, one["memory"]["sharded"]]))
    return f"| {one['model']}, {one['gpus']} GPUs | {numbers} |"


def giga(number: float) -> str:
    return f"{number / 1e9:.1f} GB"


if __name__ == "__main__":
    main()
