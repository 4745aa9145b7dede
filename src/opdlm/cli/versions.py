"""What ran, for the files of numbers."""

import platform
from importlib.metadata import version

import opdlm


def versions() -> dict[str, str]:
    """Of this package and of what decides its numbers."""
    return {
        "opdlm": opdlm.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }
