"""What the machine does to a command: a closed pipe, another encoding, files that cannot be used."""

import os
import subprocess
import sys

import pytest

from cli_support import fails
from opdlm.cli import main as entry


def opdlm(*words, **environment):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "opdlm", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment)


@pytest.mark.parametrize("words", [["--help"], ["doctor", "--help"]])
def test_a_closed_pipe_is_no_error(words):
    """Without it `opdlm doctor --help | head -1` would end in a traceback."""
    with opdlm(*words) as running:
        running.stdout.close()
        errors = running.stderr.read()
    assert errors == b""
    assert running.returncode in (0, entry.CLOSED_PIPE)  # 0 where argparse itself met the closed pipe


def test_an_encoding_without_the_characters():
    """Without it a message with an accent would be a traceback where the terminal knows ASCII alone."""
    with opdlm("naïve-commañd", PYTHONIOENCODING="ascii", LC_ALL="C") as running:
        output, errors = running.communicate()
    assert running.returncode == 2
    assert errors.startswith(b"error: there is no command 'na\\xefve")
    assert output == b""
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "a.jsonl"), IsADirectoryError(21, "Is a directory", "a.jsonl")]
)
def test_a_file_that_cannot_be_used(error, capsys, monkeypatch):
    """Without it a missing permission would be a traceback."""

    def refuse(words):
        raise error

    monkeypatch.setattr(entry, "_dispatch", refuse)
    assert f"a.jsonl: {error.strerror}" in fails(capsys, "generate", "hello")


def test_a_name_that_is_too_long(capsys):
    """Without it the system's refusal of the path would be a traceback."""
    assert "a" * 20 in fails(capsys, "doctor", "a" * 5000)


def test_half_a_character(capsys):
    """Without it an argument in another encoding would end in a traceback of the tokenizer."""
    assert "half a character" in fails(capsys, "generate", "what\udce9")
