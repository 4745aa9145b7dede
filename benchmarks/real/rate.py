"""How fast an arm trains, by number type: one short rollout each, in turns."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import measuring

from opdlm.distill import api
from opdlm.records.metrics import StepMetrics

PROMPTS = 16
PARTS = ("rollout", "teacher", "student")
Row = dict[str, Any]


def rates(settings: Mapping[str, Any], work: Path, device: str, threads: int, repeats: int) -> Iterator[Row]:
    """Response tokens per second with bfloat16 products beside float32: of all parts together, and of each."""
    short = {**settings, "rollouts": 1, "prompts_per_rollout": PROMPTS, "device": device, "threads": threads}
    del short["eval_prompts"]
    made: dict[str, list[StepMetrics]] = {"bfloat16": [], "float32": []}
    for number in range(repeats):
        for precision in list(made)[:: 1 if number % 2 else -1]:
            made[precision].append(_rollout({**short, "precision": precision}, work / "rate"))
            print(precision, {name: round(made[precision][-1].seconds[name], 1) for name in PARTS}, flush=True)
    for parts in (PARTS, *((name,) for name in PARTS)):
        ours, rival = ([_rate(one, parts) for one in made[precision]] for precision in ("bfloat16", "float32"))
        about = {"parts": " ".join(parts), "prompts": PROMPTS, "threads": threads}
        yield measuring.row("response tokens per second", "token/s", ours, rival, "float32 products", about)


def _rollout(settings: Mapping[str, Any], run: Path) -> StepMetrics:
    shutil.rmtree(run, ignore_errors=True)
    told: list[StepMetrics] = []
    api.convert(output=str(run), on_step=told.append, **settings)
    shutil.rmtree(run)
    return told[0]


def _rate(metrics: StepMetrics, parts: tuple[str, ...]) -> float:
    return metrics.tokens_trained / sum(metrics.seconds[name] for name in parts)
