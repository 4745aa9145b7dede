"""Calls the command line in this process, as a user would from a shell."""

import hashlib
from pathlib import Path

from opdlm.cli.main import main

SMALL = """
    --prompts-per-rollout 4 --rows-per-update 4 --rollouts 2 --save-every-rollouts 1 --response-length.start 8
    --response-length.end 8 --optimiser.learning-rate 1e-3
""".split()


def call(*words):
    """The exit code of `opdlm WORDS`."""
    return main([str(word) for word in words])


def fails(capsys, *words, code=2):
    """The message of a command that must fail: one line, no traceback, the given exit code."""
    capsys.readouterr()
    assert call(*words) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def fingerprint(folder):
    """Relative path -> hash of every file below a folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
