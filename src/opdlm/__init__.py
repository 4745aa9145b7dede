"""Turn a pretrained autoregressive language model into a block-diffusion one by on-policy distillation.

`opdlm.convert` trains, `opdlm.load` opens the result. Both are looked up on first use: `import opdlm` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdlm.distill.api import convert, resume
    from opdlm.sampling.api import load

__version__ = "0.1.0"

__all__ = ["__version__", "convert", "load", "resume"]

_HOME = {"convert": "opdlm.distill.api", "resume": "opdlm.distill.api", "load": "opdlm.sampling.api"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
