"""A GGUF file from doctor to eval, as a user meets it."""

import json

import pytest
import transformers
from packaging.version import Version

from cli_support import SMALL, call, fails
from opdlm.checkpoints.gguf_file import OLDEST, sha256_of
from opdlm.checkpoints.load import load_ar_model, load_checkpoint

pytest.importorskip("gguf", reason="needs gguf: pip install 'opdlm[gguf]'")

if Version(transformers.__version__) < Version(OLDEST):
    pytest.skip(f"GGUF files need transformers {OLDEST} or newer", allow_module_level=True)

from gguf_support import gguf_model, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf_model(), quantisation="Q8_0")


def test_doctor(file, capsys):
    """Else a user would not learn what the teacher is."""
    assert call("doctor", file, "--no-speed") == 0
    assert "dequantised from a GGUF file in Q8_0" in capsys.readouterr().out
    assert call("doctor", file, "--no-speed", "--json", "--lossless") == 0
    assert "Q8_0" in json.loads(capsys.readouterr().out)["weights"]


@pytest.mark.parametrize(
    "flags", ["", "--lora 2", "--lora 2 --adapter-only", "--lossless --lora 2", "--lossless --lora 2 --adapter-only"]
)
def test_conversion(flags, file, prompts, tmp_path, capsys):
    """Else hours of training would end in a folder that cannot be saved, loaded or compared with its original."""
    words = ("--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--rollouts", "1", *flags.split())
    assert call("convert", file, *words) == 0
    assert "dequantised from a GGUF file in Q8_0" in capsys.readouterr().out
    student, _ = load_checkpoint(tmp_path / "run" / "model")
    assert not hasattr(student.model.config, "quantization_config")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "tiny.gguf" in card
    assert sha256_of(file) in card
    assert call("generate", tmp_path / "run", "one", "--max-new-tokens", "4") == 0
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"prompt": "one", "answer": "two", "family": "edit"}) + "\n")
    assert call("eval", tmp_path / "run", "--problems", problems, "--max-new-tokens", "4") == 0


def test_an_adapter_knows_its_file(file, prompts, tmp_path, capsys):
    """Else an adapter could be put onto another quantisation of the model."""
    copy = tmp_path / "base.gguf"
    copy.write_bytes(file.read_bytes())
    words = ("--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--rollouts", "1", "--lossless", "--lora", "2")
    assert call("convert", copy, *words, "--adapter-only") == 0
    write_gguf(copy, load_ar_model(file)[0], quantisation="Q4_1")
    message = fails(capsys, "generate", tmp_path / "run", "one")
    assert "base.gguf" in message
    assert "to use it there: opdlm attach" in message


def test_generate_needs_a_conversion(file, capsys):
    """Else a file's name would be taken for a prompt, and the package's own model would answer it."""
    assert "convert it first" in fails(capsys, "generate", file, "one")
    assert "convert it first" in fails(capsys, "generate", file, "--prompts", "p.txt", "--output", "o.jsonl")
