"""Where a model's files are, and its config: before any weight is read."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from opdlm.checkpoints.damage import blamed_on, reason_of
from opdlm.checkpoints.gguf_file import SUFFIX, is_gguf, only_gguf, read_gguf_config
from opdlm.checkpoints.trust import REFUSED, asks_for_code, trusted
from opdlm.data.hub import ask_hub
from opdlm.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError

ENTRY = "block_diffusion"
"""Key of our settings in config.json and in generation_config.json."""
FIX_CONFIG = "correct it, or download or write the model again"
_SIZES = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**16,
    "sliding_window": 2**31,
    "max_position_embeddings": 2**31,
}
"""Counts of a config and what no model comes near: where one is wrong, building the model could take for ever."""
_ATTENTION = ("sdpa", "eager", "flex_attention")
"""Names that mean transformers' and torch's own code."""
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def locate(name_or_path: str | Path) -> str | Path:
    """A folder or a GGUF file as it is; of a folder that holds nothing else of a model, its GGUF file; a hub name as it
    is, or as the folder that its files are cached in while the hub is silent.

    Raises ModelNotFoundError where neither a folder nor the hub nor its cache has the model.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return name_or_path if (path / "config.json").is_file() else _without_config(path)
    if is_gguf(path) and not path.is_file():
        raise ModelNotFoundError(f"there is no file {path}; check the path")
    if path.exists() and not is_gguf(path):
        raise ModelNotFoundError(f"{path} is a file; give the folder that holds the model, or a {SUFFIX} file")
    if path.exists():
        return path
    answer = ask_hub(str(name_or_path), "model")
    if answer == "there":
        return name_or_path
    if answer == "unknown":
        raise ModelNotFoundError(f"no local folder and no hub model is named {name_or_path}; check the spelling")
    try:
        return snapshot_download(str(name_or_path), local_files_only=True)
    except (LocalEntryNotFoundError, ValueError) as error:
        why = "the model hub cannot be reached" if answer == "unreachable" else "HF_HUB_OFFLINE keeps the hub away"
        raise ModelNotFoundError(
            f"no local folder is named {name_or_path}, it was not downloaded before, and {why}; check the spelling, or "
            "download the model first"
        ) from error


def _without_config(folder: Path) -> Path:
    """The GGUF file in a folder without config.json, else what the folder is, for those that users take for a model."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        of = f"of {base}; give {base}" if base else "; give the model that it was trained on"
        raise ModelNotFoundError(f"{folder} holds an adapter and no model: it is one {of}, or merge the two first")
    if (folder / "config.toml").is_file():
        raise ModelNotFoundError(
            f"{folder} is a run of opdlm convert, not an AR model; continue it with --resume, or give its original"
        )
    file = only_gguf(folder)
    if file is None:
        raise ModelNotFoundError(f"the folder {folder} has no config.json; give the folder that holds the model")
    return file


def load_config(name_or_path: str | Path) -> PreTrainedConfig:
    """The model's config, without its weights.

    Raises:
        ModelNotFoundError: there is no such model. UnsupportedModelError: transformers does not know its kind.
        CheckpointError: config.json is damaged.
    """
    return read_config(locate(name_or_path))


def read_config(place: str | Path) -> PreTrainedConfig:
    """As `load_config`, for what `locate` found."""
    if is_gguf(place):
        return read_gguf_config(Path(place))
    what = f"config.json of {place}"
    if Path(place).is_dir():
        read_json(Path(place) / "config.json")
    with blamed_on(what, FIX_CONFIG):
        try:
            config = AutoConfig.from_pretrained(place, trust_remote_code=trusted())
        except OSError as error:
            raise _no_config(place, error) from error
        except ValueError as error:
            if asks_for_code(error):
                raise UnsupportedModelError(f"the config of {place} cannot be read: {REFUSED}") from error
            reason = reason_of(error).split(". ")[0]
            raise UnsupportedModelError(
                f"transformers cannot read the config of {place} ({reason}); choose a model that it supports itself"
            ) from error
    _check_attention(config, place)
    if trusted():
        with blamed_on(f"the code of {place}", "choose a model that transformers knows itself"):
            _adopt_class(config, place)
    return config


def _adopt_class(config: PreTrainedConfig, place: str | Path) -> None:
    """Makes the class that comes with a model known to transformers, where that has none for it.

    Of a converted model that is the AR model's class: its modeling_opdlm.py is for those who have no opdlm.
    """
    if type(config) in AutoModelForCausalLM._model_mapping:
        return
    ours, own = getattr(config, ENTRY, None), getattr(config, "auto_map", None) or {}
    name = ours.get("original_class") if isinstance(ours, dict) else own.get("AutoModelForCausalLM")
    if name is not None:
        made = get_class_from_dynamic_module(name, str(place))
        made.register_for_auto_class("AutoModelForCausalLM")  # so that saving it takes the file along
        AutoModelForCausalLM.register(type(config), made)


def _check_attention(config: PreTrainedConfig, place: str | Path) -> None:
    """Raises UnsupportedModelError where config.json names attention code on the hub: transformers would fetch it."""
    named = config._attn_implementation
    if named is not None and named not in _ATTENTION:
        raise UnsupportedModelError(
            f"config.json of {place} asks for the attention implementation {named!r}, which opdlm does not load, since "
            "it may be code on the hub; remove attn_implementation from it"
        )


def _no_config(place: str | Path, error: OSError) -> Exception:
    """What to say of a hub model whose config cannot be had."""
    if isinstance(error.__cause__, GatedRepoError):
        return ModelNotFoundError(f"access to {place} is restricted; accept its terms and log in with `hf auth login`")
    return ModelNotFoundError(f"no config.json can be read of {place} ({reason_of(error)}); choose another model")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises CheckpointError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else reason_of(error)
        raise CheckpointError(f"{path} is not valid JSON ({reason}); download or write the model again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; download or write the model again")
    return content


def count_parameters(config: PreTrainedConfig) -> int:
    """Parameters of a model with this config, tied ones once; no memory is taken for them.

    Raises CheckpointError where no model can be built from it.
    """
    where = f"config.json of {config.name_or_path}" if config.name_or_path else "the config"
    with torch.device("meta"), blamed_on(where, FIX_CONFIG):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def check_sizes(config: PreTrainedConfig) -> None:
    """Raises CheckpointError if a count is none: transformers takes many a one, and fails much later."""
    for name, most in _SIZES.items():
        value = getattr(config, name, None)
        if value is None and (name not in _REQUIRED or not hasattr(config, name)):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            what = f"config.json of {config.name_or_path}" if config.name_or_path else "the config"
            raise CheckpointError(f"{what} has {name} = {value!r:.40}, no count from 1 to {most}; {FIX_CONFIG}")
