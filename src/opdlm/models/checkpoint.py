"""Checkpoints: load an ARLM, save and load a block-diffusion model as a Hugging Face folder.

The folder of a block-diffusion model holds the ARLM's weights under their own names, its config.json with two entries
more ("block_diffusion": geometry and mask id; "auto_map": the class in modeling_opdlm.py), the tokenizer with its mask
token, the decoding defaults under "block_diffusion" in generation_config.json, a model card, and modeling_opdlm.py,
with which plain transformers decodes it where opdlm is not installed.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import opdlm
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.errors import CheckpointError, ModelNotFoundError, OutputExistsError, StorageError, UnsupportedModelError
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.model_card import model_card
from opdlm.models.tokens import SpecialTokens, special_tokens
from opdlm.models.verdict import check_convertible

ENTRY = "block_diffusion"
"""Key of our settings in config.json and in generation_config.json."""
MODEL_FILE = "modeling_opdlm.py"
_AUTO_MAP = {"AutoModelForCausalLM": "modeling_opdlm.BlockDiffusionForCausalLM"}


# --- loading ------------------------------------------------------------------------------------------------------


def load_arlm(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An autoregressive decoder and its tokenizer, from a local folder or by its hub name.

    Raises:
        ModelNotFoundError: no folder and no reachable hub model has this name.
        UnsupportedModelError: no mask adapts its architecture; found before any weight is read.
        CheckpointError: weights or tokenizer are missing, truncated, or of another architecture.
    """
    config = load_config(name_or_path)
    check_convertible(config)
    tokenizer = _load_tokenizer(name_or_path)
    return _load_weights(name_or_path, config, dtype).to(device), tokenizer  # type: ignore[arg-type]


def load_checkpoint(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[BlockDiffusionModel, PreTrainedTokenizerBase]:
    """A block-diffusion model saved by `save_checkpoint` and its tokenizer; errors as in `load_arlm`.

    An ARLM that was never converted raises CheckpointError.
    """
    config = load_config(name_or_path)
    entry = getattr(config, ENTRY, None)
    if entry is None:
        raise CheckpointError(f"{name_or_path} is not a block-diffusion model; convert it first with `opdlm convert`")
    try:
        geometry = Geometry(int(entry["block_size"]), entry["prediction"], entry["context"])
        mask_token_id = int(entry["mask_token_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the {ENTRY!r} entry in config.json of {name_or_path} is damaged ({error!r}); use another checkpoint"
        ) from error
    model, tokenizer = load_arlm(name_or_path, dtype=dtype, device=device)
    return BlockDiffusionModel(model, geometry, mask_token_id), tokenizer


def is_checkpoint(path: str | Path) -> bool:
    """Whether the local folder holds a block-diffusion model (it says nothing about its weights)."""
    try:
        return ENTRY in json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def generation_settings(model: PreTrainedModel) -> GenerationSettings:
    """The decoding defaults that the checkpoint was saved with; ours where it says nothing."""
    entry = getattr(model.generation_config, ENTRY, None) or {}
    try:
        return GenerationSettings.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"generation_config.json: {ENTRY}.{'.'.join(map(str, first['loc']))}: {first['msg']}; correct or remove it"
        ) from error


def load_config(name_or_path: str | Path) -> PreTrainedConfig:
    """The model's config, without its weights; raises ModelNotFoundError or UnsupportedModelError."""
    folder = Path(name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"the folder {name_or_path} has no config.json; give the folder that holds the model")
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except OSError as error:
        raise _not_found(name_or_path, error) from error
    except ValueError as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UnsupportedModelError(
            f"transformers cannot read the config of {name_or_path} ({reason}); choose a model that it supports itself"
        ) from error


def count_parameters(config: PreTrainedConfig) -> int:
    """Parameters of a model with this config, tied ones once; no memory is taken for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def _not_found(name: str | Path, error: OSError) -> Exception:
    """What to say when transformers found no config."""
    if Path(name).is_dir():
        return CheckpointError(f"config.json of {name} is not valid JSON; download or write the model again")
    cause = error.__cause__
    if isinstance(cause, GatedRepoError):
        return ModelNotFoundError(f"access to {name} is restricted; accept its terms and log in with `hf auth login`")
    if isinstance(cause, LocalEntryNotFoundError):
        return ModelNotFoundError(
            f"no local folder is named {name}, and the model hub cannot be reached; check the spelling, or download "
            "the model first"
        )
    return ModelNotFoundError(f"no local folder and no hub model is named {name}; check the spelling")


def _load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"no tokenizer can be loaded for {name_or_path}; put its files (tokenizer.json, tokenizer_config.json) "
            "beside the weights"
        ) from error


def _load_weights(name_or_path: str | Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """transformers fills what a checkpoint lacks with random numbers; here that is an error."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except (SafetensorError, EOFError) as error:
        raise CheckpointError(
            f"the weights of {name_or_path} are truncated or damaged ({error}); download or write them again"
        ) from error
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"the weights of {name_or_path} cannot be read ({reason}); add the files") from error
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of {name_or_path} do not fit its config.json; use the config that they were saved with"
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name_or_path} lacks {len(missing)} weights, among them {missing[0]}; use the complete checkpoint, with "
            "the config that it was saved with"
        )
    return model.eval()


# --- saving -------------------------------------------------------------------------------------------------------


def save_checkpoint(
    model: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    generation: GenerationSettings,
    provenance: dict[str, Any],
) -> None:
    """Writes the model as a Hugging Face folder, complete or not at all.

    Everything goes to a hidden folder beside it, which is renamed at the end: what was at `folder` stays until then.

    Args:
        generation: the decoding defaults of the checkpoint.
        provenance: what the model card tells: "base_model" and any measured numbers, name -> value.

    Raises:
        OutputExistsError: `folder` holds something that is not a checkpoint.
        StorageError: the disk is full or the folder cannot be written.
    """
    if any("lora_" in name for name, _ in model.model.named_parameters()):
        raise ValueError("merge the adapter before saving: a checkpoint holds plain weights")
    folder = Path(folder)
    if folder.exists() and not is_checkpoint(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists and is not a checkpoint; choose another folder")
    with _replaced(folder) as draft:
        _save_model(model.model, draft)
        tokenizer.save_pretrained(draft)
        _add_entries(draft / "config.json", {ENTRY: _entry(model), "auto_map": _AUTO_MAP})
        defaults = {ENTRY: generation.model_dump(mode="json"), **_stop_entries(special_tokens(model.model, tokenizer))}
        _add_entries(draft / "generation_config.json", defaults)
        source = files("opdlm.models").joinpath("remote_code.py").read_text(encoding="utf-8")
        (draft / MODEL_FILE).write_text(source, encoding="utf-8")
        (draft / "README.md").write_text(model_card(model, generation, provenance), encoding="utf-8")


def _save_model(model: PreTrainedModel, draft: Path) -> None:
    """Weights, config.json and generation_config.json."""
    original = model.generation_config
    content = json.loads(original.to_json_string(use_diff=True))
    # transformers ignores unknown entries of a generation config that it marked as derived from the model config.
    content["_from_model_config"] = False
    # Some published generation configs contradict themselves (a temperature, but no sampling), and transformers 5.10
    # refuses to write them. They stay as they are, so save_pretrained gets a blank one to write instead.
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(draft)
    finally:
        model.generation_config = original
    _add_entries(draft / "generation_config.json", content)


def _stop_entries(tokens: SpecialTokens) -> dict[str, Any]:
    """The tokenizer's stop tokens too, so that the folder decodes alike where only the model is loaded."""
    stops = list(tokens.stop_token_ids)
    return {"pad_token_id": tokens.pad_token_id, "eos_token_id": stops} if stops else {}


def _entry(model: BlockDiffusionModel) -> dict[str, Any]:
    geometry = model.geometry
    return {
        "block_size": geometry.block_size,
        "mask_token_id": model.mask_token_id,
        "prediction": geometry.prediction,
        "context": geometry.context,
        "opdlm_version": opdlm.__version__,
    }


def _add_entries(path: Path, entries: dict[str, Any]) -> None:
    """Adds entries to a JSON file, or makes it."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place if the body succeeds and vanishes if it does not."""
    draft, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # left by a run that was killed
        draft.mkdir(parents=True)
        yield draft
        _swap(draft, folder, old)
    except (OSError, SafetensorError) as error:
        # safetensors reports a failed write as an error of its own, with the system's message inside.
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        fix = "the disk is full; free some space" if full else f"{error}; choose another folder"
        raise StorageError(f"{folder} could not be written: {fix}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
