"""Every recipe that comes with the package."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from opdlm import recipes
from opdlm.config import ConvertSettings, DistillSettings, as_text, settings_from
from opdlm.distill.api import resolve
from opdlm.errors import ConfigError


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_loads_and_cites_its_source(name: str) -> None:
    """Else a recipe could go stale with the settings, or give numbers that nobody can trace."""
    settings_from(ConvertSettings, recipes.load_recipe(name))
    lines = (files(recipes) / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    header = "".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert re.search(r"arXiv \d{4}\.\d{5}|benchmarks/|docs/|measured", header), "the header comment names no source"


def test_the_papers_recipes_are_there() -> None:
    """Else the published settings by size could not be run by name."""
    assert {"paper-small", "paper-large", "standard", "standard-large"} <= set(recipes.names())
    small, large = (settings_from(DistillSettings, recipes.load_recipe(f"paper-{size}")) for size in ("small", "large"))
    assert small == DistillSettings()
    assert large == DistillSettings(top_k=16)


def test_the_recipe_follows_the_size() -> None:
    """Else a small model would be converted by settings that were measured on large ones, or the other way round."""
    sizes = (1_000_000, 29_999_999, 30_000_000, 1_700_000_000, 2_999_999_999, 4_000_000_000)
    expected = ["small", "small", "standard", "standard", "standard", "standard-large"]
    assert [recipes.recipe_for(size) for size in sizes] == expected


def test_the_demo_shows_what_small_models_get() -> None:
    """Else the demo's numbers would say nothing about `opdlm convert`."""
    demo, small = recipes.load_recipe("demo"), recipes.load_recipe("small")
    assert {name for name in demo.keys() | small.keys() if demo.get(name) != small.get(name)} == {
        "rollouts",
        "save_every_rollouts",
    }


def test_unknown_recipes_name_the_nearest(tmp_path: Path) -> None:
    """Else a misspelt recipe would end in a traceback."""
    with pytest.raises(ConfigError, match="did you mean 'paper-small'"):
        recipes.load_recipe("paper-smal")
    with pytest.raises(ConfigError, match="paper-large"):
        recipes.load_recipe("zzz")
    with pytest.raises(ConfigError, match="there is no recipe"):
        recipes.load_recipe(str(tmp_path / "none.toml"))
    mine = tmp_path / "mine.toml"
    mine.write_text("block_size = 8\n")
    assert recipes.load_recipe(str(mine)) == {"block_size": 8}
    mine.write_text("block_size = = 8\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        recipes.load_recipe(str(mine))


def test_the_longest_response_alone_is_enough(tmp_path: Path) -> None:
    """Else `--response-length.end 24` would fail for a start that nobody typed, with or without a recipe's ramp."""
    own = tmp_path / "own.toml"
    own.write_text("block_size = 4\n")
    for recipe in ("standard", "small", str(own)):
        for end in (24, "24"):
            ramp = resolve(recipe=recipe, response_length={"end": end}).response_length
            assert (ramp.start, ramp.end) == (24, 24)
    assert resolve(recipe="standard", response_length={"end": 512}).response_length.start == 100


def test_a_recipe_has_the_values_of_its_base(tmp_path: Path) -> None:
    """Else a recipe that gives one learning rate would lose the rest of its base's optimiser, or run in a circle."""
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "small"\nrollouts = 3\ndecoding = "checked"\noptimiser = { l2_sp = 1.0 }\n')
    small, own = recipes.load_recipe("small"), recipes.load_recipe(str(mine))
    assert "base" not in own
    assert own["optimiser"] == {**small["optimiser"], "l2_sp": 1.0}
    assert (own["rollouts"], own["decoding"], own["states"]) == (3, "checked", small["states"])
    assert recipes.load_recipe("qwen3-4b") == {**recipes.load_recipe("paper-large"), "model": "Qwen/Qwen3-4B"}
    for base in (f'"{mine}"', "3"):
        mine.write_text(f"base = {base}\n")
        with pytest.raises(ConfigError, match="no other recipe"):
            recipes.load_recipe(str(mine))


def test_every_recipe_is_described() -> None:
    """Else nobody would learn that there is a recipe for a model."""
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "recipes.md").read_text("utf-8") + (docs / "method.md").read_text("utf-8")
    assert [name for name in recipes.names() if f"`{name}`" not in text] == []


SAME = {"prediction": "same", "context": "block"}
NOT_SHIFTED = {"clean_weight": 0.0, "usual_decoding": "dynamic:0.9"}


@pytest.mark.parametrize("recipe", ["standard", "gemma-3", "own.toml"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"clean_weight": 1.0, "usual_decoding": "checked:auto"}),
        ({"method": "offpolicy_kd", "states": "random_mask"}, {"clean_weight": 1.0, "usual_decoding": "checked:auto"}),
        ({"method": "sft", "states": "random_mask"}, {"clean_weight": 0.0, "usual_decoding": "checked:auto"}),
        (SAME, NOT_SHIFTED),
        ({"context": "block"}, NOT_SHIFTED),
    ],
)
def test_another_geometry_leaves_out_what_the_recipe_has_for_its_own(
    recipe: str, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    """Else `--prediction same` would fail over settings that the user never named; in a recipe file as on the command
    line."""
    if recipe == "own.toml":
        (tmp_path / recipe).write_text(tomli_w.dumps({"base": "standard", **changes}))
        recipe, changes = str(tmp_path / recipe), {}
    settings = resolve(recipe=recipe, **changes)
    assert settings.clean_weight == expected["clean_weight"]
    assert as_text(settings.usual_decoding) == expected["usual_decoding"]


def test_what_the_user_says_is_never_left_out(tmp_path: Path) -> None:
    """Else a run would do without it and not say so."""
    with pytest.raises(ConfigError, match="clean_weight needs prediction shifted"):
        resolve(recipe="standard", **SAME, clean_weight=1.0)
    with pytest.raises(ConfigError, match="decoding checked needs prediction shifted"):
        resolve(recipe="standard", **SAME, decoding="checked")
    for values in ({"base": "standard", **SAME, "clean_weight": 0.5}, {"clean_weight": 1.0}):
        (tmp_path / "own.toml").write_text(tomli_w.dumps(values))
        with pytest.raises(ConfigError, match="clean_weight needs prediction shifted"):
            resolve(recipe=str(tmp_path / "own.toml"))


def test_a_recipe_cannot_trust_a_models_code(tmp_path: Path) -> None:
    """Else someone else's recipe would run someone else's code."""
    (tmp_path / "own.toml").write_text('base = "standard"\ntrust_remote_code = true\n')
    with pytest.raises(ConfigError, match="no recipe can say trust_remote_code"):
        resolve(recipe=str(tmp_path / "own.toml"))


@pytest.mark.parametrize(
    "changes", [{"gradient_checkpointing": True}, {"block_size": 8}, SAME, {"warm_start_rollouts": 3}]
)
def test_a_lossless_conversion_takes_nothing_that_it_would_not_use(changes: dict[str, Any]) -> None:
    """Else a user would believe that it trains in less memory, or in blocks."""
    with pytest.raises(ConfigError, match="a lossless conversion has no such thing; leave it out"):
        resolve(recipe="lossless", **changes)


def test_an_adapter_takes_the_recipe_without_l2_sp() -> None:
    """Else `--lora` on a small model would fail over a value that the user never set; one that is set is checked."""
    assert resolve(recipe="small", lora_rank=4).optimiser.l2_sp == 0
    assert (
        resolve(recipe="small", lora_rank=4).optimiser.learning_rate == resolve(recipe="small").optimiser.learning_rate
    )
    with pytest.raises(ConfigError, match=r"leave out optimiser\.l2_sp"):
        resolve(recipe="small", lora_rank=4, optimiser={"l2_sp": 1.0})


def test_an_adapter_gets_its_own_rates(tmp_path: Path) -> None:
    """Else `--lora` would train at the rates of all weights, at which an adapter hardly moves."""
    assert resolve(recipe="standard").optimiser.learning_rate == 1e-5
    optimiser = resolve(recipe="standard", lora_rank=4).optimiser
    assert (optimiser.learning_rate, optimiser.final_learning_rate, optimiser.warmup_updates) == (1e-4, 1e-5, 5)
    given = resolve(recipe="standard", lora_rank=4, optimiser={"learning_rate": 2e-5}).optimiser
    assert (given.learning_rate, given.final_learning_rate) == (2e-5, 1e-5)
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "standard-large"\nlora_rank = 8\n')
    assert resolve(recipe=str(mine)).optimiser.learning_rate == 1e-4, "of the base, where the recipe has the adapter"
    assert resolve(recipe=str(mine), lora_rank=4).optimiser.learning_rate == 1e-4
    mine.write_text("with_adapter = 3\n")
    with pytest.raises(ConfigError, match="no table of settings"):
        recipes.load_recipe(str(mine))
    with pytest.raises(ConfigError, match="with_adapter"):
        resolve(recipe="standard", with_adapter={"block_size": 8})
