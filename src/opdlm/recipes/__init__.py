"""Recipes: settings as data. Each file says where its values come from, and which of them nobody has measured.

`base = "NAME"` in a recipe: the values of that recipe, but for those that this one gives itself. `with_adapter`: a
table of settings for those who train an adapter with it.
"""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from opdlm.errors import ConfigError

SMALL_BELOW = 30_000_000
"""Parameters. Measured: `small` with 1.3 million (docs/studies), `standard` with 135 million (docs/real_model.md)."""
LARGE_FROM = 3_000_000_000
"""Parameters. The paper has one setting for 0.6B and 1.7B, another for 4B and 8B (arXiv 2606.06712, Table 13)."""


_ADAPTER = "with_adapter"


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in files(__name__).iterdir() if p.name.endswith(".toml"))


def recipe_for(parameters: int) -> str:
    """The recipe for a model of that size where none is named; the paper's own are `paper-small` and `paper-large`."""
    if parameters < SMALL_BELOW:
        return "small"
    return "standard" if parameters < LARGE_FROM else "standard-large"


def settings_of_all() -> set[str]:
    """What any of the recipes sets, "group.member" where there are groups."""
    found: set[str] = set()
    for name in names():
        for key, value in load_recipe(name).items():
            plain = not isinstance(value, dict) or "kind" in value
            found |= {key} if plain else {f"{key}.{member}" for member in value}
    return found


def load_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe of the package, or of a .toml file, with those of its base.

    Raises ConfigError if there is none, if its base is no other recipe, or if it says that a model's code may run.
    """
    return with_recipe(name, {})


def with_recipe(name: str | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over the settings of a recipe; errors as `load_recipe`."""
    merged = inherited(_loaded(name) if name else {}, own)
    return {key: value for key, value in merged.items() if key != _ADAPTER or key in own}


def _loaded(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """With `with_adapter`. `above`: the recipes whose base it is."""
    own = _read(name)
    if "trust_remote_code" in own:  # a recipe may be someone else's
        raise ConfigError(f"recipe {name}: no recipe can say trust_remote_code; leave it out, give --trust-remote-code")
    if (base := own.pop("base", None)) is None:
        return own
    if not isinstance(base, str) or base in (name, *above):
        raise ConfigError(f"recipe {name}: its base {base!r} is no other recipe; name one, or leave base out")
    return inherited(_loaded(base, (name, *above)), own)


def inherited(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over the `settings` of a recipe.

    A group (a table without a kind) that is given in part keeps the recipe's other values, such as
    `response_length={"end": 512}`. Where `own` chooses another method or geometry, what the recipe has for its own
    alone goes; where it is `own` that chooses an adapter, what the recipe has for one comes. What `own` says stays.
    """
    if own.get("lora_rank") is not None and settings.get("lora_rank") is None:
        settings = inherited(settings, settings.get(_ADAPTER, {}))
    merged = {**settings, **{name: _over(settings.get(name), value) for name, value in own.items()}}
    anchored = (merged.get("prediction"), merged.get("context")) == ("shifted", "causal")
    gone = []
    if own.keys() & {"method", "prediction", "context"}:
        if not anchored or merged.get("method") in ("sft", "lossless"):
            gone.append("clean_weight")
        if not anchored and _kind(merged.get("decoding")) == "checked":
            gone.append("decoding")
    return {name: value for name, value in merged.items() if name in own or name not in gone}


def _over(value: Any, own: Any) -> Any:
    groups = all(isinstance(one, Mapping) and "kind" not in one for one in (value, own))
    return {**value, **own} if groups else own


def _kind(decoding: Any) -> str:
    """ "checked" of {"kind": "checked"} and of "checked:2"."""
    return str(decoding["kind"]) if isinstance(decoding, Mapping) else str(decoding).partition(":")[0]


def _read(name: str) -> dict[str, Any]:
    """What stands in the file."""
    path = Path(name) if name.endswith(".toml") else files(__name__) / f"{name}.toml"
    if not path.is_file():
        near = get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(names())}, or give a .toml file"
        raise ConfigError(f"there is no recipe {name!r}; {hint}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {name} is not valid TOML ({error}); correct it") from error
    if not isinstance(content.get(_ADAPTER, {}), dict):
        raise ConfigError(f"recipe {name}: {_ADAPTER} is no table of settings; write it as one")
    return content
