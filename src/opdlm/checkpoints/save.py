"""Save a block-diffusion model as a Hugging Face folder.

It holds the AR model's weights under their own names, its config.json with two entries more ("block_diffusion":
geometry and mask id; "auto_map": the class in modeling_opdlm.py), the tokenizer with its mask token, the decoding
defaults under "block_diffusion" in generation_config.json, a model card, and modeling_opdlm.py, with which plain
transformers decodes it where opdlm is not installed. An adapter alone is `adapter_folder`'s.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import opdlm
from opdlm.checkpoints.adapter_folder import BASE_HASH, Base, save_adapter
from opdlm.checkpoints.bundle import model_file
from opdlm.checkpoints.gate_folder import save_gate
from opdlm.checkpoints.load import ENTRY, is_checkpoint
from opdlm.checkpoints.model_card import model_card
from opdlm.config import GenerationSettings
from opdlm.errors import NonFiniteWeightsError, OutputExistsError, StorageError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.models.finite import all_finite
from opdlm.models.quiet import no_bars
from opdlm.models.tokens import SpecialTokens, special_tokens

MODEL_FILE = "modeling_opdlm.py"
_AUTO_MAP = {"AutoModelForCausalLM": "modeling_opdlm.BlockDiffusionForCausalLM"}


def save_checkpoint(
    model: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    generation: GenerationSettings,
    provenance: dict[str, Any],
    base: Base | None = None,
) -> None:
    """Writes the model as a Hugging Face folder, complete or not at all.

    Everything goes to a hidden folder beside it, which is renamed at the end: what was at `folder` stays until then.

    Args:
        generation: the decoding defaults of the checkpoint.
        base: saves the model's adapter alone, to be loaded on this base; default: all weights.
        provenance: what the model card tells: "base_model" and any measured numbers, name -> value.

    Raises:
        OutputExistsError: `folder` holds something that is not a checkpoint.
        StorageError: the disk is full or the folder cannot be written.
        NonFiniteWeightsError: a weight is infinite or NaN.
    """
    if base is None and any("lora_" in name for name, _ in model.model.named_parameters()):
        raise ValueError("merge the adapter before saving: a checkpoint holds plain weights")
    folder = Path(folder)
    if folder.exists() and not is_checkpoint(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists and is not a checkpoint; choose another folder")
    if not all_finite(model.parameters()):
        raise NonFiniteWeightsError(f"weights are not finite, so {folder} was not written; use an earlier checkpoint")
    with replaced(folder) as draft:
        if isinstance(model, DraftingModel):
            own = _save_drafting(model, draft, base, provenance)
        elif base is None:
            save_model(model.model, draft)
            (draft / MODEL_FILE).write_text(model_file(), encoding="utf-8")
            own = _own_entries(model, draft, _entry(model, provenance))
        else:
            _save_config(model.model, draft)
            save_adapter(model.model, base.name, draft)
            own = {ENTRY: _entry(model, provenance) | {BASE_HASH: base.sha256}}
        tokenizer.save_pretrained(draft)
        tokens = special_tokens(model.model, tokenizer, needs_mask=model.mask_token_id != NO_MASK)
        _add_entries(draft / "config.json", own)
        defaults = {ENTRY: generation.of_checkpoint(), **_stop_entries(tokens)}
        _add_entries(draft / "generation_config.json", defaults)
        card = model_card(model, generation, provenance, adapter=base is not None)
        (draft / "README.md").write_text(card, encoding="utf-8")


def _save_drafting(model: DraftingModel, draft: Path, base: Base | None, provenance: dict[str, Any]) -> dict[str, Any]:
    """The unchanged model with its gate beside it, or the gate alone; returns our entries of config.json."""
    gate = model.gate
    save_gate(gate, draft)
    about = {"form": gate.form, "window": gate.window, "rank": gate.rank}
    entry = _entry(model, provenance)
    if base is not None:
        _save_config(model.model, draft)
        return {ENTRY: entry | {"drafting": about | {"base": base.name}, BASE_HASH: base.sha256}}
    save_model(model.model, draft)
    (draft / MODEL_FILE).write_text(model_file(), encoding="utf-8")
    return _own_entries(model, draft, entry | {"drafting": about})


def _own_entries(model: BlockDiffusionModel, draft: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Our entries of config.json. Of a model with code of its own, whose files transformers has written, they say
    which class is the AR model's: the auto_map names ours."""
    if type(model.model).__module__.startswith("transformers."):
        return {ENTRY: entry, "auto_map": _AUTO_MAP}
    theirs = json.loads((draft / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    return {ENTRY: entry | {"original_class": theirs.get("AutoModelForCausalLM")}, "auto_map": theirs | _AUTO_MAP}


def _save_config(model: PreTrainedModel, draft: Path) -> None:
    """config.json and generation_config.json."""
    model.config.save_pretrained(draft)
    config = json.loads((draft / "config.json").read_text(encoding="utf-8"))
    _add_entries(draft / "config.json", {"architectures": config.get("architectures") or [type(model).__name__]})
    _add_entries(draft / "generation_config.json", _generation(model))


def _generation(model: PreTrainedModel) -> dict[str, Any]:
    content = json.loads(model.generation_config.to_json_string(use_diff=True))
    # transformers ignores unknown entries of a generation config that it marked as derived from the model config.
    return content | {"_from_model_config": False}


def save_model(model: PreTrainedModel, draft: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Weights, config.json and generation_config.json. `weights`: in place of the model's own, by their names."""
    original, content = model.generation_config, _generation(model)
    # Some published generation configs contradict themselves (a temperature, but no sampling), and transformers 5.10
    # refuses to write them. They stay as they are, so save_pretrained gets a blank one to write instead.
    model.generation_config = GenerationConfig()
    try:
        with no_bars():
            model.save_pretrained(draft, state_dict=weights)
    finally:
        model.generation_config = original
    _add_entries(draft / "generation_config.json", content)


def _stop_entries(tokens: SpecialTokens) -> dict[str, Any]:
    """The tokenizer's stop tokens too, so that the folder decodes alike where only the model is loaded."""
    stops = list(tokens.stop_token_ids)
    return {"pad_token_id": tokens.pad_token_id, "eos_token_id": stops} if stops else {}


def _entry(model: BlockDiffusionModel, provenance: dict[str, Any]) -> dict[str, Any]:
    geometry = model.geometry
    return {
        "block_size": geometry.block_size,
        "mask_token_id": model.mask_token_id,
        "prediction": geometry.prediction,
        "context": geometry.context,
        "base_model": provenance.get("base_model"),
        "opdlm_version": opdlm.__version__,
    }


def _add_entries(path: Path, entries: dict[str, Any]) -> None:
    """Adds entries to a JSON file, or makes it."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place if the body succeeds and vanishes if it does not."""
    draft, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # left by a run that was killed
        draft.mkdir(parents=True)
        yield draft
        _with_usual_modes(draft)
        _swap(draft, folder, old)
    except (OSError, SafetensorError) as error:
        # safetensors reports a failed write as an error of its own, with the system's message inside.
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        fix = "the disk is full; free some space" if full else f"{error}; choose another folder"
        raise StorageError(f"{folder} could not be written: {fix}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _with_usual_modes(draft: Path) -> None:
    """safetensors 0.8 makes files that their owner alone may read, whatever the umask is: a server of another user
    could not. They get the mode of the other new files."""
    for usual in list(draft.glob("*.json"))[:1]:
        for weights in draft.glob("*.safetensors"):
            shutil.copymode(usual, weights)


def _swap(draft: Path, folder: Path, old: Path) -> None:
    """Renames; a folder cannot be renamed onto another, so the one in place steps aside for a moment."""
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
