"""One arm: a run of `opdlm convert`, continued where it was stopped."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from opdlm.data.prompts import load_responses
from opdlm.distill import api
from opdlm.records.metrics import StepMetrics
from real.arms import Arm
from real.material import Material


def settings_of(arm: Arm, model: Path, tokens: int, seed: int, material: Material, lengths: float) -> dict[str, Any]:
    """Of `api.convert`. `lengths`: response tokens of a prompt, on average."""
    settings = dict(arm.settings)
    rollouts = rollouts_of(arm, tokens, lengths)
    given = {"responses_column": "response"} if arm.responses == "given" else {}
    return {
        **settings,
        **given,
        "model": str(model),
        "prompts": str(material.training),
        "prompts_column": "prompt",
        "eval_prompts": str(material.validation),
        "rollouts": rollouts,
        "seed": seed,
    }


def rollouts_of(arm: Arm, tokens: int, lengths: float) -> int:
    """How many make about so many tokens."""
    return max(1, round(tokens / (lengths * arm.settings["prompts_per_rollout"])))


def convert(settings: Mapping[str, Any], run: Path, device: str, precision: str, threads: int) -> Path:
    """The converted model: of a finished run as it is, else trained to its end. Ctrl-C leaves a checkpoint."""
    if (run / "model" / "config.json").is_file():
        print(f"{run} is done", flush=True)
        return run / "model"
    if (run / "config.toml").is_file():
        return api.resume(run, on_step=show)
    circumstances: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
    return api.convert(output=str(run), on_step=show, **circumstances, **settings)


def given_length(tokenizer: PreTrainedTokenizerBase, material: Material, cap: int) -> float:
    """Mean tokens of the given answers, stop token included, each cut at `cap`."""
    texts = load_responses(str(material.training), "response")
    return fmean(min(cap, 1 + len(tokenizer.encode(text, add_special_tokens=False))) for text in texts)


def show(metrics: StepMetrics) -> None:
    """A line for each rollout."""
    seconds = sum(metrics.seconds.values())
    parts = ", ".join(f"{name} {value:.0f}" for name, value in metrics.seconds.items() if value >= 1)
    rate = metrics.tokens_trained / seconds
    print(
        f"rollout {metrics.rollout} of {metrics.rollouts}: loss {metrics.loss:.3f}, "
        f"{metrics.tokens_trained:,} tokens in {seconds:.0f} s ({rate:.1f} a second: {parts}), "
        f"{metrics.tokens_per_forward:.2f} tokens per forward, {metrics.total.tokens_trained:,} tokens so far",
        flush=True,
    )
