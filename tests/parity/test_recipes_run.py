"""Every recipe trains: its first two steps on tiny random weights of the architecture that it is for."""

from pathlib import Path

import pytest

import opdlm
from opdlm import recipes
from opdlm.distill.api import resolve
from opdlm.records.metrics import StepMetrics
from support import tiny_model, tiny_tokenizer

ARCHITECTURE = {
    "Qwen/Qwen3": "qwen3",
    "meta-llama/Llama-3.2": "llama",
    "HuggingFaceTB/SmolLM2": "llama",
    "HuggingFaceTB/SmolLM3": "smollm3",
    "google/gemma-3": "gemma3",
}
SIZES = {  # what a tiny model and two seconds allow; all other values are the recipe's
    "rollouts": 2,
    "prompts_per_rollout": 2,
    "rows_per_update": 2,
    "rollout_batch": 2,
    "response_length": {"start": 4, "end": 6, "rollouts": 1},
}


def architecture_of(recipe: str) -> str:
    """Of the model that the recipe names; recipes for any model are tried on that of most."""
    model = recipes.load_recipe(recipe).get("model", "Qwen/Qwen3")
    return next(name for start, name in ARCHITECTURE.items() if model.startswith(start))


@pytest.mark.parametrize("recipe", recipes.names())
def test_the_first_two_steps(recipe: str, tmp_path: Path) -> None:
    """Else a recipe's settings could contradict each other or the architecture, which a rented GPU would find out."""
    tiny_model(architecture_of(recipe), num_hidden_layers=3).save_pretrained(tmp_path / "ar_model")
    tiny_tokenizer(chat=True).save_pretrained(tmp_path / "ar_model")
    sizes = SIZES | ({"lora_rank": 4} if "lora_rank" in recipes.load_recipe(recipe) else {})
    steps: list[StepMetrics] = []
    opdlm.convert(
        tmp_path / "ar_model",
        ["what is 2+2?", "xyz!"],
        tmp_path / "run",
        recipe=recipe,
        device="cpu",
        on_step=steps.append,
        **sizes,
    )
    assert [step.updates for step in steps] == [1, 2]
    assert steps[-1].total.tokens_trained > 0
    assert all(step.gradient_norm > 0 for step in steps), "nothing was learnt"


def test_a_recipe_may_name_its_model(tmp_path: Path) -> None:
    """Else `opdlm convert --recipe qwen3-4b` would still ask which model, or a folder given for it would be ignored."""
    assert resolve(recipe="qwen3-4b").model == "Qwen/Qwen3-4B"
    assert resolve(recipe="qwen3-4b", model="mine").model == "mine"
    large = resolve(recipe="qwen3-4b")
    assert (large.top_k, large.prediction, large.response_length.end) == (16, "same", 4000)
