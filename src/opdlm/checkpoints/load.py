"""Load an AR model, or a block-diffusion model from its folder (`save` says what that holds)."""

import json
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

from opdlm.checkpoints import adapter_folder
from opdlm.checkpoints.adapter_folder import BASE_HASH
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.quiet import no_bars
from opdlm.models.tokens import find_or_add_mask_token
from opdlm.models.verdict import check_convertible

ENTRY = "block_diffusion"
"""Key of our settings in config.json and in generation_config.json."""


def load_ar_model(
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
    """A block-diffusion model saved by `save_checkpoint` and its tokenizer; errors as in `load_ar_model`.

    An AR model that was never converted raises CheckpointError.
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
    if (expected := entry.get(BASE_HASH)) is not None:
        model, tokenizer = _load_adapted(name_or_path, str(expected), mask_token_id, dtype)
        return BlockDiffusionModel(model.to(device), geometry, mask_token_id), tokenizer  # type: ignore[arg-type]
    model, tokenizer = load_ar_model(name_or_path, dtype=dtype, device=device)
    return BlockDiffusionModel(model, geometry, mask_token_id), tokenizer


def _load_adapted(
    folder: str | Path, expected: str, mask_token_id: int, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An adapter's base, if it is the right one, with the adapter folded in; in float32 until then."""
    name = adapter_folder.base_of(folder)
    try:
        base, base_tokenizer = load_ar_model(name)
    except ModelNotFoundError as error:
        raise adapter_folder.missing_base(folder, name) from error
    adapter_folder.check_base(base, name, expected)
    if find_or_add_mask_token(base, base_tokenizer) != mask_token_id:
        raise CheckpointError(f"the tokenizer of {name} has changed since the adapter in {folder} was made; restore it")
    model = adapter_folder.apply_adapter(base, folder)
    for parameter in model.parameters():  # not the buffers: rotary frequencies stay float32, as transformers has them
        parameter.data = parameter.data.to(dtype)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval(), _load_tokenizer(folder)


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
        with no_bars():
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
