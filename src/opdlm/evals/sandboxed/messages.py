"""What both roles of a child share."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MAX_BYTES = 100_000  # of one message

Send = Callable[[dict[str, Any]], None]


def module_scope(name: str) -> dict[str, Any]:
    """The scope of a new module, which dataclasses and the like look up by its name."""
    made = ModuleType(name)
    sys.modules[name] = made
    return made.__dict__


def failure(error: BaseException) -> dict[str, Any]:
    """What is said of an error. Its text may be the generated code's own, and fail in turn."""
    kind = type(error).__name__
    try:
        detail = f"{kind}: {error}"[:1000]
    except BaseException:  # noqa: BLE001 (any code may run in __str__)
        detail = kind
    return {"error": "memory" if isinstance(error, MemoryError) else "exception", "detail": detail}
