"""A GGUF file as an AR model: config, tokenizer and weights as transformers reads them, the weights dequantised.

A GGUF states less than a config.json does: what is not in it has the default of its architecture. What transformers
leaves out of a file without a word, and would make another model of it, is refused here.
"""

import copy
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from packaging.version import Version
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from opdlm.checkpoints.damage import blamed_on, reason_of
from opdlm.errors import MissingExtraError, ModelNotFoundError, UnsupportedModelError
from opdlm.models.quiet import no_bars

SUFFIX = ".gguf"
OLDEST = "5.23"
"""The first version of transformers with which this was tested; 5.10 cannot read the tokenizers."""
_FIX = "download it again, or take another quantisation of the model"
_PLAIN = ("F32", "F16", "BF16")
_DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""Values of tokenizer.ggml.pre whose models read each digit by itself, which transformers leaves out."""
_ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that stretch positions. transformers drops them, and with them what the model was trained with."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        types: the quantisations of its weights, the one of most weights first. split: how its tokenizer splits a text
            before anything else, by llama.cpp's name.
    """

    architecture: str
    types: tuple[str, ...]
    split: str | None

    @property
    def note(self) -> str:
        """What the weights become."""
        packed = [name for name in self.types if name not in _PLAIN]
        if not packed:
            return f"a GGUF file in {self.types[0]}"
        return f"dequantised from a GGUF file in {packed[0]}; the teacher is the dequantised model"


def is_gguf(place: str | Path) -> bool:
    """Whether it is named as a GGUF file is."""
    return Path(place).suffix.lower() == SUFFIX


def only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder, None where it has none. Raises ModelNotFoundError where it has several."""
    found = sorted(path for path in folder.iterdir() if is_gguf(path))
    if len(found) > 1:
        raise ModelNotFoundError(f"{folder} holds {len(found)} GGUF files; name one of them, such as {found[0]}")
    return found[0] if found else None


def sha256_of(path: Path) -> str:
    """Of the file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> Header:
    """Architecture and quantisations.

    Raises:
        MissingExtraError: the packages that read it are not there, or too old.
        CheckpointError: the file is broken or cut off.
        UnsupportedModelError: it is one of several parts, or stretches positions in a way that would be lost.
    """
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{path} is a GGUF file and needs {' and '.join(missing)}; install it with: pip install 'opdlm[gguf]'"
        )
    if Version(transformers.__version__) < Version(OLDEST):
        raise MissingExtraError(
            f"{path} is a GGUF file and needs transformers {OLDEST} or newer, this is {transformers.__version__}; "
            "upgrade it: pip install -U transformers"
        )
    return _header(path, *_version(path))


def _version(path: Path) -> tuple[int, int]:
    """Tells one content of the file from another. A vocabulary takes seconds to be read, so what was read is kept."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


@lru_cache(maxsize=1)
def _header(path: Path, size: int, changed: int) -> Header:
    from gguf import GGUFReader

    with blamed_on(str(path), _FIX):
        reader = GGUFReader(path)
        architecture = str(_field(reader, "general.architecture"))
        parts = _field(reader, "split.count")
        scaling = _field(reader, f"{architecture}.rope.scaling.type")
        split = _field(reader, "tokenizer.ggml.pre")
        weights: Counter[str] = Counter()
        for tensor in reader.tensors:
            weights[tensor.tensor_type.name] += int(tensor.n_elements)
    if parts is not None and parts > 1:
        raise UnsupportedModelError(
            f"{path} is one of {parts} parts; join them with llama-gguf-split --merge, and give the whole file"
        )
    lost = [tensor.name for tensor in reader.tensors if tensor.name in _ROPE]
    if lost or scaling not in (None, "none"):
        how = lost[0] if lost else f"rope scaling {scaling}"
        raise UnsupportedModelError(
            f"{path} stretches its positions ({how}), which transformers does not read from a GGUF file; give the "
            "model's folder with config.json and safetensors"
        )
    return Header(architecture, tuple(name for name, _ in weights.most_common()), split)


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def read_gguf_config(path: Path) -> PreTrainedConfig:
    """The config that the file states. Raises UnsupportedModelError for an unknown architecture; as `read_header`."""
    read_header(path)
    return copy.deepcopy(_config(path, *_version(path)))


@lru_cache(maxsize=1)
def _config(path: Path, size: int, changed: int) -> PreTrainedConfig:
    with _alone(path) as where, blamed_on(str(path), _FIX):
        try:
            config = AutoConfig.from_pretrained(**where)
        except (ValueError, NotImplementedError) as error:
            kind = read_header(path).architecture
            raise UnsupportedModelError(
                f"transformers cannot read {path}, a GGUF file of a {kind} model ({reason_of(error)}); "
                "give the model's folder with config.json and safetensors"
            ) from error
    config.name_or_path = str(path)
    return config


def load_gguf(
    path: Path, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any], PreTrainedTokenizerBase]:
    """The model with plain weights, transformers' loading information, and the tokenizer with its chat template.

    Raises:
        UnsupportedModelError: its quantisation cannot be dequantised. CheckpointError: a broken file, or no tokenizer.
    """
    header = read_header(path)
    # Of the bars one is tqdm's own, which only a closed stream keeps out of a caller's output.
    with _alone(path) as where, blamed_on(str(path), _FIX), no_bars(), redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(**where)
        if header.split in _DIGITS_ALONE:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **where, **_unpacked(), config=config, dtype=dtype, output_loading_info=True
            )
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{path} holds weights in {', '.join(header.types)}, and one of these cannot be dequantised "
                f"({reason_of(error)}); take another quantisation of the model, such as Q8_0 or Q4_K_M"
            ) from error
    model, info = loaded
    model.config.name_or_path = model.name_or_path = tokenizer.name_or_path = str(path)
    return model, info, tokenizer


@contextmanager
def _alone(path: Path) -> Iterator[dict[str, str]]:
    """How transformers is told of the file: in a folder of its own. Beside a tokenizer.json it would take that one."""
    with TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield {"pretrained_model_name_or_path": folder, "gguf_file": path.name}


def _unpacked() -> dict[str, Any]:
    """Newer versions of transformers keep the blocks of a file where they can, and call the model quantised, which
    cannot be saved; a student learns from plain weights."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}
