"""Load an AR model, or a block-diffusion model from its folder (`save` says what that holds)."""

from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from opdlm.checkpoints import adapter_folder
from opdlm.checkpoints.damage import blamed_on, reason_of
from opdlm.checkpoints.gate_folder import Drafting, base_of, with_gate
from opdlm.checkpoints.gguf_file import is_gguf, load_gguf, read_header, sha256_of
from opdlm.checkpoints.source import ENTRY, FIX_CONFIG, check_sizes, locate, read_config, read_json
from opdlm.checkpoints.trust import REFUSED, asks_for_code, trusted
from opdlm.config import GenerationSettings
from opdlm.config.distill import Context, Prediction
from opdlm.core.types import Geometry
from opdlm.errors import CheckpointError, MissingExtraError, ModelNotFoundError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.quiet import no_bars
from opdlm.models.tokens import find_or_add_mask_token
from opdlm.models.verdict import check_convertible
from opdlm.records import checksums
from opdlm.records.record import Part

_FIX_TOKENIZER = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights"


class Entry(Part):
    """Our settings in config.json.

    Attributes:
        base_model: the AR model that it was made from, where that is known.
        base_sha256: of an adapter that stands alone: hash of the weights that it belongs to.
        drafting: of a lossless model: its gate.
        original_class: of an AR model with code of its own: "FILE.CLASS", as its auto_map had it.
    """

    block_size: int = Field(ge=1, le=1024)
    mask_token_id: int = Field(ge=NO_MASK)
    prediction: Prediction
    context: Context
    base_model: str | None = None
    base_sha256: str | None = None
    drafting: Drafting | None = None
    original_class: str | None = None


def load_ar_model(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An autoregressive decoder and its tokenizer, from a local folder, a GGUF file, or by its hub name; quantised
    weights as plain.

    Raises:
        ModelNotFoundError: no folder, no file and no reachable hub model has this name.
        MissingExtraError: it is quantised, and the package that reads it is not there.
        UnsupportedModelError: no mask adapts its architecture; found before any weight is read.
        CheckpointError: it was converted already, or weights, config or tokenizer are missing, damaged, or of another
            architecture.
    """
    place = locate(name_or_path)
    return _load(place, _ar_config(place), dtype, device)


def load_ar_config(name_or_path: str | Path) -> PreTrainedConfig:
    """The config of a model that `load_ar_model` takes, as far as a config tells; errors as there."""
    return _ar_config(locate(name_or_path))


def weights_note(name_or_path: str | Path) -> str | None:
    """What a user must know of the weights that `load_ar_model` gives: of a GGUF file, what they were."""
    place = locate(name_or_path) if Path(name_or_path).exists() else name_or_path  # the hub is not asked again
    return read_header(Path(place)).note if is_gguf(place) else None


def shown_name(name_or_path: str | Path) -> str:
    """What a model card calls a model. A path means nothing on another machine: a folder's or file's name."""
    return Path(name_or_path).resolve().name if Path(name_or_path).exists() else str(name_or_path)


def provenance_of(name_or_path: str | Path) -> dict[str, str]:
    """What a model card says of the AR model."""
    local = Path(name_or_path)
    if not local.exists() or not is_gguf(place := locate(local)):
        return {"base_model": shown_name(name_or_path)}
    file = Path(place)
    return {"base_model": file.name, "base weights": read_header(file).note, "SHA-256 of the base": sha256_of(file)}


def load_checkpoint(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[BlockDiffusionModel, PreTrainedTokenizerBase]:
    """A block-diffusion model saved by `save_checkpoint` and its tokenizer; errors as in `load_ar_model`.

    An AR model that was never converted raises CheckpointError.
    """
    place = locate(name_or_path)
    config = read_config(place)
    content = getattr(config, ENTRY, None)
    if content is None:
        raise CheckpointError(f"{name_or_path} is not a block-diffusion model; convert it first with `opdlm convert`")
    entry = entry_of(content, name_or_path)
    _check_decoder(config)
    if entry.drafting is not None:
        return _load_drafting(place, config, entry, entry.drafting, dtype, device)
    geometry, mask = Geometry(entry.block_size, entry.prediction, entry.context), entry.mask_token_id
    if entry.base_sha256 is not None:
        model, tokenizer = _load_adapted(place, entry.base_sha256, mask, dtype)
        return BlockDiffusionModel(model.to(device), geometry, mask), tokenizer  # type: ignore[arg-type]
    model, tokenizer = _load(place, config, dtype, device)
    return BlockDiffusionModel(model, geometry, mask), tokenizer


def entry_of(content: Any, name_or_path: str | Path) -> Entry:
    """Our entry in the config of a converted model. Raises CheckpointError where it is damaged."""
    try:
        return Entry.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(
            f"the {ENTRY!r} entry in config.json of {name_or_path} is damaged ({_first(error)}); use another checkpoint"
        ) from error


def _ar_config(place: str | Path) -> PreTrainedConfig:
    config = read_config(place)
    if getattr(config, ENTRY, None) is not None:
        raise CheckpointError(_already_converted(place, getattr(config, ENTRY)))
    _check_decoder(config)
    return config


def _already_converted(place: str | Path, content: Any) -> str:
    """What a converted model is, what it was made from, and what to do with it."""
    base = content.get("base_model") if isinstance(content, dict) else None
    size = content.get("block_size") if isinstance(content, dict) else None
    runs = [parent for parent in Path(place).absolute().parents[:2] if (parent / "config.toml").is_file()]
    resume = f"; to continue its run: opdlm convert --resume --output {runs[0]}" if runs else ""
    return (
        f"{place} is a converted model already (block diffusion, blocks of {size}, made from {base or 'an AR model'}); "
        f"give {base or 'the AR model that it was made from'} instead; to write with it: opdlm generate {place}{resume}"
    )


def _check_decoder(config: PreTrainedConfig) -> None:
    check_convertible(config)
    check_sizes(config)


def _load(
    place: str | Path, config: PreTrainedConfig, dtype: torch.dtype, device: str | torch.device
) -> tuple[Any, PreTrainedTokenizerBase]:
    if is_gguf(place):
        model, info, tokenizer = load_gguf(Path(place), config, dtype)
    else:
        tokenizer = _load_tokenizer(place)
        _check_generation_config(place)
        model, info = _load_weights(place, config, dtype)
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills what a checkpoint lacks with random numbers; here that is an error
        raise CheckpointError(
            f"{place} lacks {len(missing)} weights, among them {missing[0]}; use the complete checkpoint, with "
            "the config that it was saved with"
        )
    return model.eval().to(device), tokenizer  # type: ignore[arg-type]


def _load_drafting(
    place: str | Path,
    config: PreTrainedConfig,
    entry: Entry,
    about: Drafting,
    dtype: torch.dtype,
    device: str | torch.device,
) -> tuple[BlockDiffusionModel, PreTrainedTokenizerBase]:
    """The unchanged AR model, of the folder or of the base that it names, with its gate."""
    if entry.base_sha256 is None:
        model, tokenizer = _load(place, config, dtype, device)
        return with_gate(model, place, about), tokenizer
    name = base_of(place, about)
    try:
        model, _ = load_ar_model(name)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{place} is a gate alone, and its base {name} is not found; write where it is as {ENTRY}.drafting.base "
            "into config.json"
        ) from error
    if adapter_folder.weights_hash(model) != entry.base_sha256:
        raise CheckpointError(
            f"the gate {place} was not made for the weights of {name}; to use it there: opdlm attach {place} {name} "
            "--output DIR"
        )
    _cast(model, dtype)
    model.to(device)  # type: ignore[arg-type]
    model.generation_config = GenerationConfig.from_pretrained(place)
    return with_gate(model, place, about), _load_tokenizer(place)


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
    _cast(model, dtype)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval(), _load_tokenizer(folder)


def finished(path: str | Path) -> str | Path:
    """The model of a run's folder; a model's own folder or hub name as it is.

    Raises CheckpointError: the run has no model yet, or files of the model are not as they were written.
    """
    folder = Path(path) / "model" if is_checkpoint(Path(path) / "model") else path
    if folder is path and (Path(path) / "config.toml").is_file():
        raise CheckpointError(
            f"the run in {path} has no model: it is not finished, or its folder model was removed; to go on and write "
            f"it: opdlm convert --resume --output {path}"
        )
    if checksums.there(Path(folder)) and (damage := checksums.damage(Path(folder))) is not None:
        raise CheckpointError(f"{damage}; use another checkpoint, or restore the file from a copy")
    return folder


def is_checkpoint(path: str | Path) -> bool:
    """Whether the local folder holds a block-diffusion model (it says nothing about its weights)."""
    config = Path(path) / "config.json"
    return config.is_file() and read_json(config).get(ENTRY) is not None


def generation_settings(config: GenerationConfig | None) -> GenerationSettings:
    """The decoding defaults that the checkpoint was saved with; ours where it says nothing."""
    entry = getattr(config, ENTRY, None)
    try:
        return GenerationSettings.model_validate({} if entry is None else entry)
    except ValidationError as error:
        raise CheckpointError(f"generation_config.json: {ENTRY}.{_first(error)}; correct or remove it") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _load_tokenizer(place: str | Path) -> PreTrainedTokenizerBase:
    with blamed_on(f"the tokenizer of {place}", "correct its files (tokenizer.json, tokenizer_config.json)"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trusted())
        except (OSError, ValueError) as error:
            if asks_for_code(error):
                raise CheckpointError(f"the tokenizer of {place} cannot be loaded: {REFUSED}") from error
            raise CheckpointError(
                f"no tokenizer can be loaded for {place} ({reason_of(error)}); {_FIX_TOKENIZER}"
            ) from error
    # Without its files transformers makes up an empty one of the model's kind.
    if len(tokenizer) <= len({*tokenizer.added_tokens_encoder, *tokenizer.all_special_tokens}):
        raise CheckpointError(f"{place} has no vocabulary; {_FIX_TOKENIZER}")
    return tokenizer


def _check_generation_config(place: str | Path) -> None:
    """Read on its own, so that an error names it."""
    path = Path(place) / "generation_config.json"
    if path.is_file():
        content = read_json(path)
        with blamed_on(str(path), "correct or remove it"):
            GenerationConfig.from_dict(content)


def _load_weights(
    place: str | Path, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and transformers' loading information."""
    weights, fix = f"the weights of {place}", "download or write them again"
    if find_adapter_config_file(str(place)) is not None:
        raise CheckpointError(
            f"{place} holds an adapter beside the model, which would be put on it unasked; merge the two first, or "
            "remove adapter_config.json"
        )
    with blamed_on(f"config.json of {place}", FIX_CONFIG), no_bars():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
        except (SafetensorError, EOFError, UnpicklingError, JSONDecodeError) as error:
            raise CheckpointError(f"{weights} are truncated or damaged ({reason_of(error)}); {fix}") from error
        except ImportError as error:
            raise MissingExtraError(
                f"{weights} need a package that is not there ({reason_of(error)}); install it, or give the model as it "
                "was before it was quantised"
            ) from error
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{weights} cannot be read ({reason}); add the files") from error
        except RuntimeError as error:
            raise CheckpointError(
                f"{weights} do not fit its config.json ({reason_of(error)}); use the config that they were saved with"
            ) from error
    model, info = loaded
    if getattr(model, "hf_quantizer", None) is not None:
        model = _dequantised(model, place, dtype)
    return model, info


def _dequantised(model: PreTrainedModel, place: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """Plain weights with the values of the quantised ones: a student is trained from them."""
    with blamed_on(f"the quantised weights of {place}", "give the model as it was before it was quantised"):
        plain: Any = model.dequantize(dtype=dtype)
    _cast(plain, dtype)  # the layers that were not quantised keep the file's type
    # How to write the quantised weights, which these no longer are: transformers then asks the model's class.
    vars(plain).pop("_weight_conversions", None)
    return plain


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Parameters alone: of the buffers, rotary frequencies stay float32, as transformers has them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
