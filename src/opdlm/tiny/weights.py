"""Where the models that ship with the package are: the tiny AR model, its student and its gate."""

from importlib.resources import files
from pathlib import Path

from opdlm.errors import ModelNotFoundError


def ar_model_path() -> Path:
    """Folder of the autoregressive model. Raises ModelNotFoundError where the package came without it."""
    return _folder("ar_model")


def student_path() -> Path:
    """Folder of its block-diffusion student. Raises ModelNotFoundError where the package came without it."""
    return _folder("student")


def lossless_path() -> Path:
    """Folder of a gate with which it drafts, to be used with its own weights. Raises ModelNotFoundError likewise."""
    return _folder("lossless")


def _folder(name: str) -> Path:
    folder = Path(str(files("opdlm.tiny"))) / "weights" / name
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"this installation has no weights at {folder}; install opdlm again, or name a model of your own"
        )
    return folder
