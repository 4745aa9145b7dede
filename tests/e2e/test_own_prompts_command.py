"""`opdlm prompts`, and a conversion with what it wrote."""

import json

import opdlm
from cli_support import SMALL, call, fails

FLAGS = ("--count", 6, "--max-new-tokens", 40, "--device", "cpu")


def test_the_model_writes_the_prompts_of_its_conversion(ar_model, tmp_path, capsys):
    """Else those who have no prompts could not convert. --resume writes what an uninterrupted call would have."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert call("prompts", ar_model, "--output", whole, *FLAGS) == 0
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == 6
    assert opdlm.write_prompts(ar_model, 6, max_new_tokens=40, device="cpu") == [row["prompt"] for row in rows]

    assert call("prompts", ar_model, "--output", cut, *FLAGS, "--batch-size", 1) == 0
    assert cut.read_text() == whole.read_text()
    heading = {"model": str(ar_model), "count": 6, "seed": 0, "max_new_tokens": 40, "temperature": 1.0, "top_p": 0.95}
    lines = whole.read_text().splitlines(keepends=True)
    partial = tmp_path / "cut.jsonl.partial"
    partial.write_text(json.dumps(heading) + "\n" + "".join(lines[:3]) + '{"prompt": "ha')
    cut.unlink()
    assert "continue it with --resume" in fails(capsys, "prompts", ar_model, "--output", cut, *FLAGS)
    other = ("--count", 6, "--max-new-tokens", 41, "--device", "cpu", "--resume")
    assert "with other settings" in fails(capsys, "prompts", ar_model, "--output", cut, *other)
    assert call("prompts", ar_model, "--output", cut, *FLAGS, "--resume") == 0
    assert cut.read_text() == whole.read_text()
    assert not partial.exists()

    assert call("convert", ar_model, "--prompts", whole, "--output", tmp_path / "run", *SMALL, "--device", "cpu") == 0


def test_mistakes(ar_model, tmp_path, capsys):
    """Each in one line that says what to do."""
    out = tmp_path / "prompts.jsonl"
    assert "opdlm prompts MODEL --output FILE" in fails(capsys, "prompts", ar_model)
    assert "at least 1" in fails(capsys, "prompts", ar_model, "--output", out, "--count", 0)
    assert "temperature" in fails(capsys, "prompts", ar_model, "--output", out, "--temperature", -1)
    assert not list(tmp_path.iterdir()), "a call that was refused left something"
    message = fails(capsys, "convert", ar_model, "--output", tmp_path / "run")
    assert "opdlm prompts MODEL --output FILE" in message
