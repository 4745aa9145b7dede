"""Recipes: settings that were measured, as data. Each file says where its values come from."""

import tomllib
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from opdlm.errors import ConfigError

SMALL_BELOW = 30_000_000
"""Parameters. `small` was measured with 1.3 million (docs/studies), `standard` was begun with 135 million."""
LARGE_FROM = 3_000_000_000
"""Parameters. The paper has one setting for 0.6B and 1.7B, another for 4B and 8B (arXiv 2606.06712, Table 13)."""


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
    """The settings of a recipe of the package, or of a .toml file. Raises ConfigError if there is none."""
    path = Path(name) if name.endswith(".toml") else files(__name__) / f"{name}.toml"
    if not path.is_file():
        near = get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(names())}, or give a .toml file"
        raise ConfigError(f"there is no recipe {name!r}; {hint}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {name} is not valid TOML ({error}); correct it") from error
