"""The examples run; tests/parity/test_one_file.py runs `opd_one_file`."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import opdlm
from opdlm.checkpoints.save import save_checkpoint
from opdlm.config import GenerationSettings
from opdlm.distill.api import resolve
from opdlm.tiny.weights import ar_model_path
from rollouts import fresh_student
from support import tiny_tokenizer


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the first lines that a user copies would fail."""
    folder = tmp_path / "model"
    settings = GenerationSettings(max_new_tokens=8)
    save_checkpoint(fresh_student(), tiny_tokenizer(mask=True), folder, generation=settings, provenance={})
    monkeypatch.setattr("sys.argv", ["generate.py", str(folder), "2+2="])
    example("generate").main()
    printed = capsys.readouterr().out
    assert "tokens a forward" in printed
    assert "____" in printed
    assert "(the end)" in printed


def test_convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the example would use settings that do not exist. The run itself is too long for a test."""

    def pretend(model: str, prompts: str, output: str, *, on_step: Any, **settings: Any) -> Path:
        assert resolve(model=model, prompts=prompts, output=output, **settings).rollouts == 100
        on_step(SimpleNamespace(rollout=1, rollouts=100, loss=0.5))
        return Path(output) / "model"

    monkeypatch.setattr(opdlm, "convert", pretend, raising=False)
    monkeypatch.setattr("sys.argv", ["convert.py", str(ar_model_path()), "prompts.jsonl", "run"])
    example("convert").main()
    assert "rollout 1/100   loss 0.5000" in capsys.readouterr().out


def test_lossless_one_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the promise that it prints would be broken, or it would not learn."""
    sizes = "--updates 3 --rows 2 --rank 4 --questions 2 --max-new-tokens 16".split()
    monkeypatch.setattr("sys.argv", ["lossless_one_file.py", *sizes])
    example("lossless_one_file").main()
    printed = capsys.readouterr().out
    assert "update    3   loss" in printed
    assert "same text as the original: 2 of 2, at " in printed
