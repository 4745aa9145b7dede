"""Turn a pretrained autoregressive language model into a block-diffusion one by on-policy distillation.

`opdlm.convert` trains, `opdlm.load` opens the result, `opdlm.evaluate` compares it with the original.
`opdlm.write_prompts` is for those who have no prompts, `opdlm.attach` puts a gate on a fine-tune of its base. All are
looked up on first use: `import opdlm` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdlm.checkpoints.attach import attach
    from opdlm.distill.api import convert, resume
    from opdlm.evals.compare import evaluate
    from opdlm.sampling.api import load
    from opdlm.sampling.own_prompts import write_prompts

__version__ = "0.1.0"

__all__ = ["__version__", "attach", "convert", "evaluate", "load", "resume", "write_prompts"]

_HOME = {
    "attach": "opdlm.checkpoints.attach",
    "convert": "opdlm.distill.api",
    "evaluate": "opdlm.evals.compare",
    "load": "opdlm.sampling.api",
    "resume": "opdlm.distill.api",
    "write_prompts": "opdlm.sampling.own_prompts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
