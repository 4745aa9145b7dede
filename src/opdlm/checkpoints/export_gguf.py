"""The AR reading of a converted model as a GGUF file, made by llama.cpp's own converter and read back.

What a GGUF must say of an architecture, and of how its tokenizer splits a text, the converter knows and changes with
llama.cpp. A second writer here would be a copy that goes stale, and that an engine would read without a word.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from opdlm.errors import OutputExistsError, UsageError

CONVERTER = "convert_hf_to_gguf.py"
TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""dtype -> the converter's --outtype."""


def find_converter(folder: str | Path | None) -> Path:
    """The converter in a copy of llama.cpp. Raises UsageError, which says what to get."""
    if folder is None:
        raise UsageError(
            f"--format gguf runs llama.cpp's own {CONVERTER}; name the folder that holds it with --llama-cpp, such as "
            "that of git clone https://github.com/ggml-org/llama.cpp, or write --format hf and convert that yourself"
        )
    found = Path(folder) / CONVERTER
    if not found.is_file():
        raise UsageError(f"{folder} holds no {CONVERTER}; give the folder of a copy of llama.cpp")
    return found


def convert_folder(
    converter: Path, plain: Path, target: str | Path, *, dtype: str, python: str = sys.executable
) -> Path:
    """A plain transformers folder as the GGUF file `target`, complete or not at all.

    Args:
        dtype: one of TYPES. python: with the packages that the converter needs.

    Raises:
        OutputExistsError: `target` is there. UsageError: the converter does not take the model; its reason.
    """
    target = Path(target)
    if target.exists():
        raise OutputExistsError(f"{target} exists; choose another file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as place:
        draft = Path(place) / target.name
        command = [python, str(converter), str(plain), "--outfile", str(draft), "--outtype", TYPES[dtype]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 or not draft.is_file():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UsageError(
                f"{CONVERTER} does not take this model ({lines[-1]}); use --format hf, or a newer copy of llama.cpp"
            )
        draft.rename(target)
    return target
