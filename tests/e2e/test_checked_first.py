"""What is found before a model is loaded or trained: places that cannot be written, prompts for doctor."""

import json

import pytest

from cli_support import call, fails, fingerprint


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "{model}", "--prompts", "no-such-file.jsonl", "--output", "{file}/run"),
        ("convert", "{model}", "--prompts", "no-such-file.jsonl", "--output", "{file}/more/run"),
        ("convert", "{model}", "--prompts", "no-such-file.jsonl", "--output", "/proc/run"),
        ("demo", "--quick", "--output", "{file}/run"),
        ("demo", "--quick", "--output", "/proc/run/more"),
        ("demo", "--quick", "--picture", "{file}/picture.svg"),
        ("generate", "--prompts", "no-such-file.jsonl", "--output", "{file}/out.jsonl"),
        ("generate", "--prompts", "no-such-file.jsonl", "--output", "/proc/out.jsonl"),
        ("eval", "--problems", "no-such-file.jsonl", "--json", "{file}/out.json"),
        ("eval", "--problems", "no-such-file.jsonl", "--answers", "/proc/out.jsonl"),
    ],
    ids=" ".join,
)
def test_a_place_that_cannot_be_written_is_found_first(words, ar_model, prompts, capsys, monkeypatch):
    """Without it hours of work would end in an error when their result is to be written."""
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    before = fingerprint(prompts.parent)
    message = fails(capsys, *[word.format(model=ar_model, file=prompts) for word in words])
    assert "no-such-file" not in message
    assert "choose another" in message
    assert fingerprint(prompts.parent) == before


def test_doctor_checks_prompts_and_names_them(ar_model, prompts, capsys):
    """Without it its memory would be for other prompts, and its command for a file that is not there."""
    assert call("doctor", ar_model, "--no-speed", "--json", "--prompts", prompts) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["longest_prompt"] == found["memory"]["shape"]["prompt"] == len("four are here now 0")
    assert f"--prompts {prompts} " in found["command"]
    assert call("doctor", ar_model, "--no-speed", "--json", "--prompts", prompts, "--prompt-tokens", "3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["longest_prompt"] == 3
    assert "--prompt-tokens 3" in found["command"]
