"""GGUF by llama.cpp's converter: what it is given, what comes back, and what is said where it refuses.

The converter itself is not ours to ship; `benchmarks/exports.py` runs it. Here a stand-in writes the file.
"""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM

from opdlm.checkpoints import export_gguf
from opdlm.checkpoints.gguf_file import OLDEST
from opdlm.checkpoints.load import load_ar_model
from opdlm.checkpoints.save import save_checkpoint
from opdlm.config import GenerationSettings
from opdlm.errors import IdentityCheckError, OutputExistsError, UsageError
from opdlm.evals.exports import to_gguf
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import Gate

pytest.importorskip("gguf", reason="needs gguf: pip install 'opdlm[gguf]'")
if Version(transformers.__version__) < Version(OLDEST):
    pytest.skip(f"GGUF files need transformers {OLDEST} or newer", allow_module_level=True)

from gguf_support import gguf_model, write_gguf


@pytest.fixture
def lossless(tmp_path: Path) -> str:
    """A lossless model whose base has a tokenizer that a GGUF file can hold."""
    base, tokenizer = load_ar_model(write_gguf(tmp_path / "base.gguf", gguf_model()))
    model = DraftingModel(base, Gate(base, 2, "mask", 3))
    save_checkpoint(model, tokenizer, tmp_path / "model", generation=GenerationSettings(), provenance={})
    return str(tmp_path / "model")


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A folder with a converter, whose work is done here: `change` is what it does wrong to the model."""
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text("")
    state = SimpleNamespace(folder=str(tmp_path / "llama.cpp"), change=lambda model: None, error="", seen=[])

    def converter(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        state.seen = command
        if state.error:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{state.error}\n")
        model = AutoModelForCausalLM.from_pretrained(command[2], dtype=torch.float32)
        state.change(model)
        write_gguf(Path(command[4]), model, quantisation=command[6].upper())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(export_gguf.subprocess, "run", converter)
    return state


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_base_of_a_lossless_model(dtype: str, lossless: str, llama_cpp: SimpleNamespace, tmp_path: Path) -> None:
    """Else the file would hold other weights than the base, or nobody would have looked."""
    assert to_gguf(lossless, tmp_path / "out" / "m.gguf", dtype=dtype, llama_cpp=llama_cpp.folder) < 1e-5
    assert llama_cpp.seen[5:] == ["--outtype", export_gguf.TYPES[dtype]]
    made, _ = load_ar_model(tmp_path / "out" / "m.gguf")
    original = gguf_model()
    state = made.state_dict()
    for name, value in original.state_dict().items():
        assert torch.allclose(state[name], value.to(getattr(torch, dtype)).float(), atol=1e-3 if "norm" in name else 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.gguf"]


def test_what_goes_wrong_is_said(lossless: str, llama_cpp: SimpleNamespace, tmp_path: Path) -> None:
    """Else half a file, another model or a missing converter would be found by the engine, or by nobody."""
    place = tmp_path / "m.gguf"

    def refused(kind: type[Exception], words: str, llama_cpp: str | None = llama_cpp.folder) -> None:
        with pytest.raises(kind, match=words):
            to_gguf(lossless, place, dtype="float32", llama_cpp=llama_cpp)

    refused(UsageError, "--llama-cpp.*--format hf", None)
    refused(UsageError, "holds no convert_hf_to_gguf.py", str(tmp_path))
    llama_cpp.error = "NotImplementedError: BPE pre-tokenizer was not recognized"
    refused(UsageError, "pre-tokenizer was not recognized.*--format hf")
    assert not place.exists()
    llama_cpp.error, llama_cpp.change = "", lambda model: model.model.layers[0].mlp.up_proj.weight.data.mul_(1.1)
    refused(IdentityCheckError, "do not use it")
    place.write_text("mine")
    refused(OutputExistsError, "choose another file")
    assert place.read_text() == "mine"
