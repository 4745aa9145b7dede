"""Every command and every snippet of the README works as it is shown, in its order, in one folder."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from cli_support import call
from opdlm.cli import generate
from opdlm.tiny import QUESTIONS
from opdlm.tiny.weights import ar_model_path

README = Path(__file__).parents[2] / "README.md"
MODEL = "Qwen/Qwen3-0.6B"  # stands for the reader's model: here the embedded one
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ELSEWHERE = ("pip install", "make ")  # what continuous integration itself does
FASTER = {
    "opdlm demo": "opdlm demo --quick --per-family 20",
    "opdlm doctor": "opdlm doctor --prompt-tokens 64",
    "opdlm prompts": "opdlm prompts --count 4 --max-new-tokens 48",
}


def blocks(kind: str) -> list[str]:
    return [body for language, body in BLOCK.findall(README.read_text("utf-8")) if language == kind]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the README assumes: models, prompts and problems."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("model", "my-fine-tune"):
        shutil.copytree(ar_model_path(), folder / name)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    problem = {"prompt": QUESTIONS[0], "answer": "42", "family": "maths"}
    (folder / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    (folder / "test.jsonl").write_text(json.dumps({"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}) + "\n")
    return folder


def test_every_command_and_snippet_runs(desk, monkeypatch, capsys):
    """Else the first thing that a reader tries would fail."""
    monkeypatch.chdir(desk)
    commands = [line.split("  #")[0].strip() for block in blocks("") for line in block.splitlines()]
    commands = [line for line in commands if line.startswith("opdlm ") and "\u2192" not in line]
    assert len(commands) >= 10
    for command in ["opdlm demo", *commands]:
        chosen = next(
            (fast + command[len(slow) :] for slow, fast in FASTER.items() if command.startswith(slow)), command
        )
        assert call(*shlex.split(chosen.replace(MODEL, "model"))[1:]) == 0, command
    scope: dict = {}
    snippets = blocks("python")
    assert len(snippets) >= 3
    for snippet in snippets:
        exec(snippet.replace(MODEL, "model"), scope)
    assert "<|assistant|>" in capsys.readouterr().out
    Path("run/model/chat_template.jinja").unlink()
    exec(snippets[-1], scope)  # the plain-transformers one also takes a model without a chat template
    assert "<|assistant|>" not in capsys.readouterr().out


def test_nothing_else_is_shown():
    """Else a command that no test runs could stand in the README."""
    for block in blocks(""):
        lines = [
            line for line in block.splitlines() if line and not line.startswith((" ", "src/", "examples/", "tests/"))
        ]
        assert all(line.startswith(("opdlm ", *ELSEWHERE)) for line in lines), lines


def test_examples_of_the_help_are_answered_rightly(capsys):
    """Else the help's own example would print nonsense: the shipped model knows its four tasks only."""
    answers = {QUESTIONS[0]: "#### 42", QUESTIONS[1]: "ant bag fish pear", QUESTIONS[2]: "return x * 12 + 3"}
    shown = [example for example in generate._EXAMPLES if not example.startswith("opdlm generate run")]
    assert len(shown) == len(QUESTIONS)
    for example, question in zip(shown, QUESTIONS, strict=True):
        assert question in example
        assert call(*shlex.split(example)[1:]) == 0
        assert answers[question] in capsys.readouterr().out
