"""A converted model as an adapter alone: a few MB in peft's format, with the name and the hash of its base.

The folder holds what every checkpoint holds (`save`), but for the weights and the model file: adapter_model.safetensors
and adapter_config.json stand in their place. Its geometry entry in config.json has the base's hash.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError
from transformers import PreTrainedModel

from opdlm.errors import CheckpointError, MissingExtraError, ModelNotFoundError
from opdlm.models.adapter import folded

BASE_HASH = "base_sha256"
"""Key in the geometry entry of config.json; a folder that has it is an adapter."""


_WRAPPER = "base_model.model."  # what peft's own models have in front of each name


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on: its name or absolute path, and its `weights_hash` as loaded."""

    name: str
    sha256: str

    @classmethod
    def of(cls, name: str | Path, model: PreTrainedModel) -> "Base":
        """The model of that name, a path or one of the hub."""
        return cls(str(Path(name).resolve()) if Path(name).exists() else str(name), weights_hash(model))


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over all parameters, names included, as float32: the same for every dtype that holds the same numbers."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def save_adapter(model: PreTrainedModel, base: str, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json, of a model with one adapter (`models.adapter`)."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = model.peft_config["default"]  # type: ignore[index]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))
    # The embedding stays out: its row for the mask token is made again from the base.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)  # type: ignore[arg-type]
    # peft's own loader expects the names that the model has inside its wrapper.
    tensors = {f"{_WRAPPER}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def base_of(folder: str | Path) -> str:
    """Name or path of the base. Raises MissingExtraError, or CheckpointError if the folder does not say it."""
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise MissingExtraError(
            f"{folder} is an adapter and needs peft; install it with: pip install 'opdlm[lora]'"
        ) from error
    try:
        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"adapter_config.json of {folder} is damaged or missing; save the adapter again"
        ) from error
    if not base:
        raise CheckpointError(f"adapter_config.json of {folder} names no base_model_name_or_path; write it there")
    return base


def missing_base(folder: str | Path, base: str) -> ModelNotFoundError:
    """What to say where the base is not found."""
    return ModelNotFoundError(
        f"{folder} is an adapter, and its base {base} is not found; write where it is as base_model_name_or_path into "
        "adapter_config.json"
    )


def check_base(base: PreTrainedModel, name: str, expected: str) -> None:
    """Raises CheckpointError if these are not the weights that the adapter was trained on."""
    if weights_hash(base) != expected:
        raise CheckpointError(
            f"the weights of {name} are not those that the adapter was trained on; name the right model as "
            "base_model_name_or_path in adapter_config.json"
        )


def apply_adapter(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """The base with the adapter folded into plain weights. Raises CheckpointError if the adapter does not fit.

    Of its config only the layers, the rank and alpha are taken. Others could name modules to import, or files to read.
    """
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        found = PeftConfig.from_pretrained(str(folder))
        if not isinstance(found, LoraConfig):
            raise ValueError(f"a {found.peft_type} is no LoRA adapter")
        plain = LoraConfig(r=found.r, lora_alpha=found.lora_alpha, target_modules=found.target_modules)
        inject_adapter_in_model(plain, base)
        state = {name.removeprefix(_WRAPPER): value for name, value in load_peft_weights(str(folder), "cpu").items()}
        loaded = set_peft_model_state_dict(base, state)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"the adapter in {folder} cannot be applied ({reason}); restore it") from error
    lacking = [name for name in loaded.missing_keys if "lora_" in name]
    if lacking or loaded.unexpected_keys:
        raise CheckpointError(f"the adapter in {folder} does not have the weights that its config names; restore it")
    return folded(base)
