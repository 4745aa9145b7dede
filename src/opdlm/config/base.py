"""What all settings share: how they are checked, and what an error says."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from opdlm.errors import ConfigError

_RENAMED = {"tokens_per_round": "tokens_per_step", "pull_to_original": "l2_sp"}
"""Names in the settings of runs and checkpoints that earlier versions wrote."""


class Settings(BaseModel):
    """Base of all settings: immutable; a key that does not exist is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {_RENAMED.get(name, name): value for name, value in values.items()}


_Chosen = TypeVar("_Chosen", bound=Settings)


def settings_from(kind: type[_Chosen], values: Mapping[str, Any]) -> _Chosen:
    """Validated settings. Raises ConfigError: one line that names the field, and the nearest name if it is unknown."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(_unknown(kind, first["loc"])) from error
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"setting {where}: {reason}" if where else reason) from error


def _unknown(kind: type[Settings], loc: tuple[int | str, ...]) -> str:
    """What to say of a key that does not exist: the nearest one of the table that it stands in."""
    table, path = kind, ""
    choices: list[type[Settings]] = []
    for part in map(str, loc[:-1]):
        if part in table.model_fields:
            annotation = table.model_fields[part].annotation
            choices = list(get_args(annotation)) or [annotation]  # type: ignore[list-item]
            path += f"{part}."
        else:  # pydantic names the chosen kind of a union
            choices = [choice for choice in choices if choice.model_fields["kind"].default == part]
        table = choices[0]
    near = get_close_matches(str(loc[-1]), table.model_fields, 1)
    hint = f"did you mean {path + near[0]!r}" if near else f"known are {', '.join(sorted(table.model_fields))}"
    return f"unknown setting {path + str(loc[-1])!r}; {hint}"
