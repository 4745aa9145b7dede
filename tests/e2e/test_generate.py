"""`opdlm generate` with a file of prompts, prompt after prompt, from a pipe and into one."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_support import call, fails
from opdlm.cli import batch
from opdlm.sampling import api
from opdlm.sampling.engine import Engine
from opdlm.tiny import QUESTIONS

SHORT = ("--max-new-tokens", "9")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Ten prompts of several lengths; the first rows take longest."""
    path = tmp_path / "in.jsonl"
    texts = [f"Sort {' '.join('pear fish ant bag'[: 17 - i].split())}" for i in range(10)]
    records = [{"id": i, "prompt": text, "response": "older"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- a file of prompts --------------------------------------------------------------------------------------------


def test_every_row_keeps_its_fields_and_gets_its_response(rows, tmp_path, capsys):
    """Else nobody could tell which answer belongs to which question, or why it ends."""
    output = tmp_path / "out.jsonl"
    assert (
        call("generate", "--prompts", rows, "--output", output, "--batch-size", "3", "--temperature", "1", *SHORT) == 0
    )
    captured = capsys.readouterr()
    assert "10/10 responses" in captured.err
    renamed = "the field response of the prompts is called input_response there"
    assert captured.out == f"10 responses in {output}\n{renamed}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}
    for number, (found, given) in enumerate(zip(read(output), read(rows), strict=True)):
        assert {key: found[key] for key in ("id", "prompt")} == {key: given[key] for key in ("id", "prompt")}
        assert found["input_response"] == "older"
        assert call("generate", given["prompt"], "--json", "--temperature", "1", "--seed", number, *SHORT) == 0
        alone = json.loads(capsys.readouterr().out)
        assert (found["response"], found["tokens"], found["forwards"]) == tuple(
            alone[name] for name in ("text", "tokens", "forwards")
        )
        assert found["finish_reason"] == ("length" if found["tokens"] == 9 else "stop")


def test_a_file_that_was_interrupted_goes_on(rows, tmp_path, capsys, monkeypatch):
    """Else a long job would begin anew after a crash, or its rows be made in two ways without a word."""
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    job = ("generate", "--prompts", rows, "--batch-size", "3", "--temperature", "1", *SHORT)
    assert call(*job, "--output", whole) == 0
    finished = Engine.finished

    def stopped(engine: Engine, requests: list) -> Iterator:
        for number, one in enumerate(finished(engine, requests)):
            if number == 5:
                raise KeyboardInterrupt
            yield one

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "finished", stopped)
        assert call(*job, "--output", output) == 130
    assert "--resume" in capsys.readouterr().err
    assert not output.exists()
    kept = partial.read_bytes()
    assert 2 <= kept.count(b"\n") <= 6
    partial.write_bytes(kept + b'{"id": 5, "pro')  # as a kill in the middle of a row
    assert "--resume" in fails(capsys, *job, "--output", output)
    assert "other settings" in fails(capsys, *job, "--output", output, "--resume", "--seed", "1")
    assert "other prompts" in fails(capsys, *job, "--output", output, "--resume", "--prompt-limit", "9")
    assert call(*job, "--output", output, "--resume") == 0
    assert read(output) == read(whole)
    assert not partial.exists()
    assert "nothing is left to do" in fails(capsys, *job, "--output", output, "--resume")
    assert "exists; choose another" in fails(capsys, *job, "--output", output)


def test_no_field_of_the_prompts_is_lost(tmp_path, capsys):
    """Without it a field would vanish behind one of ours, or behind the new name of another."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given = [{"prompt": "a", "response": "mine", "id": "\ud83d"}, {"prompt": "b", "input_response": "too", "tokens": 7}]
    source.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert call("generate", "--prompts", source, "--output", output, "--max-new-tokens", "2") == 0
    shown = capsys.readouterr().out
    assert "the field response of the prompts is called input_input_response there" in shown
    assert "the field tokens of the prompts is called input_tokens there" in shown
    first, second = read(output)
    assert (first["input_input_response"], first["id"]) == ("mine", "\ud83d")
    assert (second["input_response"], second["input_tokens"]) == ("too", 7)
    assert first["response"] != "mine"


def test_a_line_of_another_row_is_found(rows, tmp_path, capsys, monkeypatch):
    """Without it a line that was taken out would give every row below it the response of another."""
    job = ("generate", "--prompts", rows, "--output", tmp_path / "o.jsonl", "--max-new-tokens", "2")
    with monkeypatch.context() as patched:
        patched.setattr(batch, "finish", lambda output: None)
        assert call(*job) == 0
    partial = tmp_path / "o.jsonl.partial"
    lines = partial.read_text().splitlines()
    partial.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    assert "line 3 is no response to row 2 of the prompts; remove it and all" in fails(capsys, *job, "--resume")
    partial.write_text("\n".join(lines[:2]) + "\n")
    assert call(*job, "--resume") == 0
    assert len(read(tmp_path / "o.jsonl")) == len(lines) - 1


def test_a_refused_call_leaves_nothing(rows, tmp_path, capsys):
    """Else the call with the mistake mended would be refused too."""
    job = ("generate", "--prompts", rows, "--output", tmp_path / "o.jsonl", "--max-new-tokens", "2")
    assert "lossless" in fails(capsys, *job, "--decoding", "verified")
    assert list(tmp_path.glob("o.jsonl*")) == []
    assert call(*job) == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--prompts", "in.jsonl"], "name it with --output"),
        (["--output", "o.jsonl", "a prompt"], "name it with --prompts"),
        (["--prompts", "in.jsonl", "--output", "o.jsonl", "--watch"], "leave out watch"),
        (["--prompts", "in.jsonl", "--output", "o.jsonl", "model", "a prompt"], "leave out prompt"),
        (["--prompts", "in.jsonl", "--output", "no/o.jsonl"], "is no folder; make it"),
        (["--prompts", "in.jsonl", "--output", "o.jsonl", "--batch-size", "0"], "at least 1"),
        (["--prompts", "in.jsonl", "--output", "o.jsonl", "--prompt-limit", "0"], "at least 1"),
        (["--prompts", "bad.jsonl", "--output", "o.jsonl"], "line 2 is neither text nor a list of messages"),
        (["--prompts", "in.jsonl", "--output", "o.jsonl", "--max-new-tokens", "2000"], "context of 1024"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(flags, expected, rows, tmp_path, capsys, monkeypatch):
    """Else they would show after minutes, or leave half of a file."""
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": [{"role": "user", "content": 7}]}\n')
    assert expected in fails(capsys, "generate", *flags)
    assert not list(tmp_path.glob("o.jsonl"))


# --- prompt after prompt ------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def conversation(monkeypatch, capsys):
    """Types lines; gives what was asked of the model, and what was shown."""

    def typed(*lines: str, flags: tuple[str, ...] = SHORT) -> tuple[list, str]:
        asked, write = [], api.DiffusionLM.write
        monkeypatch.setattr("sys.stdin", Terminal("".join(f"{line}\n" for line in lines)))
        with monkeypatch.context() as patched:
            patched.setattr(
                api.DiffusionLM, "write", lambda model, prompt, **s: asked.append(prompt) or write(model, prompt, **s)
            )
            capsys.readouterr()
            assert call("generate", *flags) == 0
        return asked, capsys.readouterr().out

    return typed


def test_a_conversation_is_remembered_until_it_is_new(conversation):
    """Else a second question could not refer to the first, or never be free of it."""
    asked, shown = conversation("What is 3 + 4?", "", "And 5 + 6?", "/new", "What is 1 + 2?", "/quit", "never asked")
    assert [len(messages) for messages in asked] == [1, 3, 1]
    assert [message["role"] for message in asked[1]] == ["user", "assistant", "user"]
    assert asked[1][1]["content"] in shown
    assert "/quit" in shown


def test_a_conversation_ends_with_its_input_and_survives_mistakes(conversation, monkeypatch):
    """Else one prompt that is too long, or Ctrl-C while an answer is written, would end it."""
    asked, shown = conversation("What is 3 + 4?", "a" * 5000, "b\udcff", "What is 5 + 6?")
    assert "context" in shown
    assert "/new begins a new conversation" in shown
    assert "half of a surrogate pair" in shown
    assert [message["content"] for message in asked[-1][::2]] == ["What is 3 + 4?", "What is 5 + 6?"]

    def interrupted(*_args: object, **_settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api.DiffusionLM, "generate", interrupted)
    assert "stopped" in conversation("What is 3 + 4?", "/quit")[1]


def test_a_conversation_can_be_watched(conversation):
    """Else --watch would do nothing there."""
    assert "14[11.]" in conversation("What is 3 + 4?", flags=("--watch", *SHORT))[1], "drafts"
    assert "▒" in conversation("What is 3 + 4?", flags=("--watch", "--decoding", "prefix", *SHORT))[1]


# --- pipes and encodings ------------------------------------------------------------------------------------------


def process(*words: str, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "opdlm", *words],
        input=given,
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_without_a_prompt_a_pipe_is_the_prompt(capsys, monkeypatch):
    """Else `echo ... | opdlm generate` would be refused, though there is nothing else that it could mean."""
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTIONS[0] + "\n"))
    assert call("generate") == 0
    assert "#### 42" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--help",), ("generate", QUESTIONS[0], "--watch"), ("generate", QUESTIONS[0])])
def test_a_reader_that_is_gone_ends_it_quietly(words):
    """Else `opdlm ... | head` would end in a traceback, or in one of the interpreter's own after the last line."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "opdlm", *words], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141


def test_an_encoding_that_lacks_a_character_shows_its_escape():
    """Else a terminal that is not UTF-8 would get a traceback in place of the text."""
    done = process("generate", QUESTIONS[0], "--watch", "--decoding", "prefix", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert rb"\u2592" in done.stdout.splitlines()[0]
    done = process("generate", "--infill", "é € 3 + 4 = [[MASK:1]]", "--json", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert json.loads(done.stdout)["text"].startswith("é € 3 + 4 = ")


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["generate", "-"], b"caf\xe9"),
        (["generate", b"caf\xe9"], b""),
        (["generate", "--infill", b"caf\xe9 [[MASK:1]]"], b""),
        (["generate", "a", "--stop-strings", b"caf\xe9"], b""),
        (["generate", "a", "--logit-bias", "3:1e39"], b""),
        (["generate", "a", "--logit-bias", "9" * 5000 + ":1"], b""),
        (["generate", "a", "--seed", "9" * 5000], b""),
        (["generate", "a", "--decoding", "static:" + "9" * 5000], b""),
        (["generate", "a", "--max-new-tokens", "9" * 15], b""),
        (["generate", "--infill", "a[[MASK:1000000000]]"], b""),
        (["generate", "", "--json"], b""),
    ],
)
def test_what_cannot_be_read_is_one_line(words, given):
    """Else damaged or absurd input would end in a traceback, or take all memory."""
    done = process(*words, given=given)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
