"""The sampler's settings as plain values, for the model file: what `opdlm.config` says, without pydantic."""

from typing import Any, get_args

from pydantic.fields import FieldInfo

from opdlm.config import CONSTRAINTS, Decoding, GenerationSettings

Bounded = tuple[Any, float, float]
"""(default, least, most)."""

_OPEN = 1e30  # finite, so that it can be written as a literal


def _bounded(field: FieldInfo, default: Any) -> Bounded:
    """Bounds that are open count as closed: what lies on one fails where it is used."""
    limits = {
        name: getattr(rule, name) for rule in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)
    }
    least = next((limits[name] for name in ("ge", "gt") if name in limits), -_OPEN)
    most = next((limits[name] for name in ("le", "lt") if name in limits), _OPEN)
    return default, least, most


def _settings() -> dict[str, Bounded]:
    defaults = GenerationSettings().model_dump()
    fields = GenerationSettings.model_fields
    return {name: _bounded(field, defaults[name]) for name, field in fields.items() if name not in CONSTRAINTS}


def _decodings() -> dict[str, dict[str, Bounded]]:
    kinds = get_args(get_args(Decoding)[0])
    return {
        kind.model_fields["kind"].default: {
            name: _bounded(field, field.default) for name, field in kind.model_fields.items() if name != "kind"
        }
        for kind in kinds
    }


SETTINGS = _settings()
"""Every field of `GenerationSettings` but the constraints, which need opdlm itself."""
DECODINGS = _decodings()
"""Every kind of decoding, with its numbers; "KIND:NUMBER" gives the first."""
