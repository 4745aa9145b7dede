"""What a run may change when it is resumed: how long and how fast it learns, and where; never what it learns."""

from collections.abc import Iterator, Mapping
from typing import Any

from opdlm.config.base import settings_from
from opdlm.config.distill import ConvertSettings
from opdlm.errors import ConfigError

CHANGEABLE = (
    "rollouts",
    "optimiser.learning_rate",
    "optimiser.final_learning_rate",
    "optimiser.clip_norm",
    "device",
    "sharding",
    "threads",
    "precision",
    "rollout_batch",
    "rollout_server",
    "rollout_timeout_s",
    "rows_per_micro_batch",
    "attention",
    "gradient_checkpointing",
    "save_every_rollouts",
    "keep_checkpoints",
    "keep_best",
    "async_save",
    "report_every",
    "decoding",
    "trust_remote_code",
)
"""Settings, "group.member" where there are groups."""

Changes = dict[str, tuple[Any, Any]]
"""Setting -> its value before and after."""


def refused(changes: Mapping[str, Any]) -> str | None:
    """The first of `changes`, nested as in the settings, that a resumed run may not make."""
    return next((name for name, _ in _flat(changes) if name not in CHANGEABLE), None)


def changed(settings: ConvertSettings, changes: Mapping[str, Any]) -> tuple[ConvertSettings, Changes]:
    """The settings with `changes`, nested as they are, and what that alters.

    Raises:
        ConfigError: a setting that may not change, or a value out of range.
    """
    if (name := refused(changes)) is not None:
        raise ConfigError(
            f"a resumed run keeps its own {name}; leave it out, or start a new run (it may change "
            f"{', '.join(CHANGEABLE)})"
        )
    if "rollouts" in changes and changes["rollouts"] is None:
        raise ConfigError("setting rollouts: a resumed run takes a number, not one epoch; give it")
    before = settings.model_dump(mode="json")
    groups = {name: {**before[name], **value} for name, value in changes.items() if _is_group(value)}
    made = settings_from(ConvertSettings, {**before, **changes, **groups})
    old, new = dict(_flat(before)), dict(_flat(made.model_dump(mode="json")))
    return made, {name: (old[name], value) for name, value in new.items() if value != old[name]}


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, those of a group as "group.member"."""
    for name, value in values.items():
        if _is_group(value):
            yield from ((f"{name}.{member}", inner) for member, inner in value.items())
        else:
            yield name, value


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and "kind" not in value
