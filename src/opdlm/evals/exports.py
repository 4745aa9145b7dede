"""Exports from a folder or hub name: the model is loaded, written in another form, read back and compared."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from opdlm.checkpoints.export_gguf import convert_folder, find_converter
from opdlm.checkpoints.export_hf import export_hf
from opdlm.checkpoints.export_sdar import check_sdar, export_sdar
from opdlm.checkpoints.load import generation_settings, load_ar_model
from opdlm.config import DistillSettings, DynamicDecoding, settings_from
from opdlm.core.types import Geometry
from opdlm.errors import IdentityCheckError
from opdlm.evals.sdar.parity import PROMPTS, Agreement, SdarCode, check_parity
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.quiet import no_bars
from opdlm.models.tokens import encode_prompt, find_or_add_mask_token
from opdlm.sampling.api import load

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SGLANG_THRESHOLD = 0.95
"""SGLang's own default."""
_TOLERANCE = 1e-4  # float32 against float32, as a share of the largest logit


@dataclass(frozen=True)
class SdarExport:
    """Attributes:
    folder: the SDAR folder. block_size, threshold: what the engines are told. readings: the parity report.
    """

    folder: Path
    block_size: int
    threshold: float
    readings: list[Agreement]


def to_sdar(
    name: str,
    folder: str | Path,
    *,
    dtype: str,
    threshold: float | None = None,
    block_size: int | None = None,
    code: SdarCode | None = None,
) -> SdarExport:
    """A converted model as an SDAR folder with its parity report.

    Args:
        name: of a converted model; an AR model is taken as the student that it begins as, with blocks of `block_size`.
        threshold: of SGLang; default: of the model's own decoding, if that is `dynamic`.
        code: SDAR's own modelling file, to be compared as well.

    Raises:
        UsageError: the format cannot hold it. IdentityCheckError: the folder does not say what the model says.
    """
    if threshold is not None:
        settings_from(DynamicDecoding, {"threshold": threshold})
    if block_size is not None:
        settings_from(DistillSettings, {"block_size": block_size})
    model, tokenizer = _load(name, DTYPES[dtype], block_size)
    check_sdar(model, tokenizer)
    if threshold is None:
        decoding = generation_settings(model.model.generation_config).decoding
        threshold = decoding.threshold if isinstance(decoding, DynamicDecoding) else SGLANG_THRESHOLD
    written = export_sdar(model, tokenizer, folder, dtype=DTYPES[dtype], threshold=threshold)
    readings = check_parity(model, tokenizer, written, threshold, code)
    return SdarExport(written, model.geometry.block_size, threshold, readings)


def to_hf(name: str, folder: str | Path, *, dtype: str) -> float:
    """The AR reading as a plain folder, read back; returns the largest difference of a logit.

    Raises:
        UsageError: it has none. IdentityCheckError: the folder does not say what the model says.
    """
    model, tokenizer = _load(name, DTYPES[dtype], None)
    written = export_hf(model, tokenizer, folder, dtype=DTYPES[dtype])
    with _removed_unless_right(written), no_bars():
        read = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)
        return _difference(model, tokenizer, read, str(written))


def to_gguf(name: str, file: str | Path, *, dtype: str, llama_cpp: str | None) -> float:
    """The AR reading as a GGUF file, by llama.cpp's converter; read back as in `to_hf`.

    Args:
        llama_cpp: folder of a copy of llama.cpp.

    Raises: as `to_hf`, `find_converter` and `convert_folder`; MissingExtraError: the file cannot be read back.
    """
    converter = find_converter(llama_cpp)
    model, tokenizer = _load(name, DTYPES[dtype], None)
    with tempfile.TemporaryDirectory() as place:
        plain = export_hf(model, tokenizer, Path(place) / "plain", dtype=DTYPES[dtype])
        written = convert_folder(converter, plain, file, dtype=dtype)
    read, own = load_ar_model(written)
    texts = [(encode_prompt(tokenizer, prompt), encode_prompt(own, prompt)) for prompt in PROMPTS]
    if wrong := next((one for one in texts if one[0] != one[1]), None):
        raise IdentityCheckError(
            f"transformers reads other tokens with {written} ({wrong[1][:8]}) than with the model ({wrong[0][:8]}); "
            "use --format hf, and report this model"
        )
    return _difference(model, tokenizer, read, str(written))


def _load(name: str, dtype: torch.dtype, block_size: int | None) -> tuple[BlockDiffusionModel, PreTrainedTokenizerBase]:
    """The model in float32, with the values that its weights have in `dtype`."""
    if block_size is not None:
        ar_model, tokenizer = load_ar_model(name)
        mask = find_or_add_mask_token(ar_model, tokenizer)
        model = BlockDiffusionModel(ar_model, Geometry(block_size), mask)
    else:
        loaded = load(name, device="cpu")
        model, tokenizer = loaded.model, loaded.tokenizer
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model, tokenizer


@contextmanager
def _removed_unless_right(folder: Path) -> Iterator[None]:
    """What was written goes again if it cannot be read back, or says something else than the model."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@torch.inference_mode()
def _difference(
    model: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase, read: torch.nn.Module, name: str
) -> float:
    """Largest, over some texts, of a logit of the AR reading, the mask token's aside."""
    largest = limit = 0.0
    for prompt in PROMPTS:
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        ours, theirs = model.logits(model.causal_hidden(ids)), read(input_ids=ids, use_cache=False).logits.float()
        kept = torch.ones(ours.shape[-1], dtype=torch.bool)
        if model.mask_token_id != NO_MASK:
            kept[model.mask_token_id] = False
        largest = max(largest, float((ours - theirs)[..., kept].abs().max()))
        limit = max(limit, _TOLERANCE * max(1.0, float(ours[..., kept].abs().max())))
    if not largest <= limit:
        raise IdentityCheckError(
            f"the logits of {name} differ by up to {largest:.3g} (allowed: {limit:.3g}); do not use it, and report "
            "this model"
        )
    return largest
