"""Writes the decoding that a search chose into a model's generation_config.json, with its evidence."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdlm.checkpoints.load import ENTRY, is_checkpoint
from opdlm.checkpoints.source import read_json
from opdlm.config import GenerationSettings, settings_from
from opdlm.errors import StorageError, UsageError

EVIDENCE = "block_diffusion_tuning"
FILE = "generation_config.json"
_ON_CARD = re.compile(r"^\| default decoding \| .* \|$", re.MULTILINE)


def own_folder(model: str | Path) -> Path:
    """The folder that holds a model's files: the folder itself, or `model` in that of a run.

    UsageError for what is no folder here.
    """
    folder = next((path for path in (Path(model) / "model", Path(model)) if is_checkpoint(path)), None)
    if folder is None:
        raise UsageError(f"{model} is no folder of a converted model here; download it first, or take --dry-run")
    return folder


def write_decoding(folder: Path, decoding: str, evidence: Mapping[str, Any]) -> Path:
    """Makes `decoding` the default of the model in `folder`; the file is replaced in one step.

    Returns:
        Where the file that was there is now: renaming it back undoes the change.

    Raises:
        StorageError: the folder cannot be written; nothing has changed then.
    """
    path = folder / FILE
    old = path.read_bytes() if path.exists() else b"{}\n"
    content = read_json(path) if path.exists() else {}
    settings = settings_from(GenerationSettings, {**(content.get(ENTRY) or {}), "decoding": decoding})
    new = content | {ENTRY: settings.of_checkpoint(), EVIDENCE: dict(evidence)}
    draft, backup = path.with_name(f".{FILE}.partial"), _free(folder)
    try:
        backup.write_bytes(old)
        draft.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written ({error.strerror}); nothing has changed") from error
    _correct_card(folder / "README.md", settings)
    return backup


def _free(folder: Path) -> Path:
    """A name that no earlier search has used."""
    number, name = 1, folder / "generation_config.before_tune.json"
    while name.exists():
        number += 1
        name = folder / f"generation_config.before_tune_{number}.json"
    return name


def _correct_card(card: Path, settings: GenerationSettings) -> None:
    """The line of the model card that names the default decoding."""
    if not card.is_file():
        return
    numbers = ", ".join(f"{name} {value}" for name, value in settings.decoding.model_dump().items() if name != "kind")
    line = f"| default decoding | {settings.decoding.kind} ({numbers}); chosen by `opdlm tune` |"
    text = card.read_text(encoding="utf-8")
    if _ON_CARD.search(text):
        card.write_text(_ON_CARD.sub(lambda found: line, text), encoding="utf-8")
