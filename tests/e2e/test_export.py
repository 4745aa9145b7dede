"""`opdlm export` as a user types it."""

import json
import re
import shlex
from pathlib import Path

import pytest

from cli_support import SMALL, call, fails
from opdlm.checkpoints import export_sdar
from opdlm.cli import convert, export
from opdlm.cli.options import given
from opdlm.config import ConvertSettings, settings_from
from opdlm.evals.sdar import parity
from support import MASK, tiny_model, tiny_tokenizer


def test_from_an_ar_model_to_its_folders(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, prompts) -> None:
    """Else the commands of docs/export.md would not follow each other."""
    for module in (export_sdar, parity):
        monkeypatch.setattr(module, "MASK_ID", MASK)
    base, run = tmp_path / "base", tmp_path / "run"
    tiny_model("qwen3", num_hidden_layers=2).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    assert call("export", base, "--format", "sdar", "--block-size", 4, "--output", tmp_path / "start") == 0
    shown = capsys.readouterr().out
    assert "3 of 3 texts the same" in shown
    assert "--dllm-algorithm LowConfidence" in shown
    assert "--dllm-block-length 4" in shown
    flags = ["--prompts", prompts, "--output", run, *SMALL, "--rollouts", 1, "--decoding", "dynamic:0.6"]
    assert call("convert", base, *flags, "--prediction", "same", "--context", "block") == 0
    assert call("export", run, "--format", "sdar", "--output", tmp_path / "sdar", "--dtype", "bfloat16") == 0
    assert json.loads((tmp_path / "sdar" / parity.REPORT).read_text())["threshold"] == 0.6
    assert "--format sdar" in fails(capsys, "export", run, "--format", "hf", "--output", tmp_path / "hf")
    assert "--trust-remote-code" in fails(
        capsys, "export", run, "--format", "sdar", "--output", tmp_path / "x", "--sdar-code", tmp_path
    )
    assert "--llama-cpp" in fails(capsys, "export", run, "--format", "gguf", "--output", tmp_path / "m.gguf")
    for flags, message in (
        (("--threshold", "nan"), "setting threshold"),
        (("--threshold", 7), "setting threshold"),
        (("--block-size", 0), "setting block_size"),
    ):
        assert message in fails(capsys, "export", base, "--format", "sdar", "--output", tmp_path / "x", *flags)
    assert not (tmp_path / "x").exists()


def test_a_shifted_student_as_a_plain_folder(tmp_path: Path, ar_model, prompts, capsys) -> None:
    """Else `--format hf` would need more than the run's folder."""
    flags = ["--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--rollouts", 1, "--lora", 2]
    flags += ["--adapter-only", "--prediction", "shifted", "--context", "causal"]
    assert call("convert", ar_model, *flags) == 0
    assert call("export", tmp_path / "run", "--format", "hf", "--output", tmp_path / "hf") == 0
    assert "differ by at most" in capsys.readouterr().out
    assert "lossless" in fails(capsys, "export", tmp_path / "run", "--output", tmp_path / "uno")
    assert "Qwen3" in fails(
        capsys, "export", ar_model, "--format", "sdar", "--block-size", 4, "--output", tmp_path / "sdar"
    )


def test_the_documented_commands_are_commands() -> None:
    """Else a reader of docs/export.md would type a flag that is not there, or settings that do not go together."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text("utf-8").replace("\\\n", " ")
    lines = [line.partition("  #")[0] for line in re.findall(r"^opdlm .*$", page, re.MULTILINE)]
    commands = [shlex.split(line)[1:] for line in lines]
    assert len(commands) >= 6
    for name, *words in commands:
        arguments = {"convert": convert, "export": export}[name].parser().parse_args(words)
        if name == "convert":
            settings = settings_from(ConvertSettings, given(arguments, ConvertSettings))
            assert settings.rollout_server == "http://localhost:30000"
