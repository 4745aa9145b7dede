"""Whether code that comes with a model may run. It may not, unless the user says so: --trust-remote-code.

Such code runs with the user's rights. One place decides: what loads a model asks here, and passes nothing on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ALLOWED: ContextVar[bool] = ContextVar("remote code is allowed", default=False)
REFUSED = (
    "it comes with code of its own, which opdlm does not run; if you trust who wrote it, add --trust-remote-code, else "
    "choose a model that transformers knows itself"
)


@contextmanager
def remote_code(allowed: bool) -> Iterator[None]:
    """While it is entered, a model's own code may run if `allowed`; what an outer one allows stays allowed."""
    before = _ALLOWED.set(allowed or _ALLOWED.get())
    try:
        yield
    finally:
        _ALLOWED.reset(before)


def trusted() -> bool:
    """Whether a model's own code may run."""
    return _ALLOWED.get()


def asks_for_code(error: Exception) -> bool:
    """Whether transformers refused a model because its code may not run."""
    return "trust_remote_code" in str(error)
