"""Which AR model a converted model was made from."""

from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from opdlm.checkpoints.gate_folder import Drafting, base_of
from opdlm.checkpoints.load import ENTRY
from opdlm.checkpoints.source import load_config
from opdlm.errors import UsageError
from opdlm.records.run_folder import RunFolder


def original_of(model: str | Path, flag: str = "--against") -> str:
    """Folder or hub name of the AR model, as the run that made `model` has it, else its config or its model card.

    Args:
        model: folder of a run, or of a model or checkpoint in it; a folder with a model card (README.md).
        flag: with which the user can name it.

    Raises:
        ModelNotFoundError: there is no such model.
        UsageError: it does not say what it was made from.
    """
    run = _run_of(Path(model).resolve())  # `best` is a link
    if run is not None:
        return RunFolder(run).settings().model
    base = _base_of_gate(model) or _base_on_card(Path(model) / "README.md", flag)
    if base is None:
        raise UsageError(f"{model} does not say which model it was made from; name it with {flag}")
    return base


def _base_of_gate(model: str | Path) -> str | None:
    """The AR model that a gate without weights belongs to."""
    content = getattr(load_config(model), ENTRY, None)
    about = content.get("drafting") if isinstance(content, dict) else None
    if not about or not about.get("base"):
        return None
    return base_of(model, Drafting.model_validate(about))


def _run_of(folder: Path) -> Path | None:
    """The run that the folder is, or that it is a model or a checkpoint of."""
    candidates = [folder]
    if folder.name == "model":
        candidates.append(folder.parent)
    if folder.parent.name == "checkpoints":
        candidates.append(folder.parent.parent)
    return next((path for path in candidates if (path / "config.toml").is_file()), None)


def _base_on_card(card: Path, flag: str) -> str | None:
    if not card.is_file():
        return None
    try:
        base = (metadata_load(card) or {}).get("base_model")
    except (ValueError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"the model card {card} cannot be read ({reason}); name the original with {flag}") from error
    return base if isinstance(base, str) else None
