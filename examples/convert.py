"""Convert an autoregressive model into a block-diffusion one, from Python.

    python examples/convert.py MODEL PROMPTS OUTPUT

MODEL: folder or hub name. PROMPTS: a .jsonl, .json, .parquet or .txt file. OUTPUT: a new folder; the result is in
OUTPUT/model. Killed? `opdlm.resume(OUTPUT)` goes on from the newest checkpoint as if nothing had happened.
"""

import sys

import opdlm
from opdlm.records.metrics import StepMetrics


def show(metrics: StepMetrics) -> None:
    print(f"rollout {metrics.rollout}/{metrics.rollouts}   loss {metrics.loss:.4f}")


def main() -> None:
    model, prompts, output = sys.argv[1:4]
    folder = opdlm.convert(
        model,
        prompts,
        output,
        # the recipe for models of this size gives the defaults; these replace them
        rollouts=100,
        prompts_per_rollout=32,
        response_length={"start": 64, "end": 256, "rollouts": 20},
        on_step=show,
    )
    print(f"converted: {folder}")


if __name__ == "__main__":
    main()
