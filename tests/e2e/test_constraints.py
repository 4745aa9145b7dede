"""`opdlm generate` with --json-schema, --regex and --grammar."""

import json
import re

import pytest

from cli_support import call, fails
from opdlm.tiny import QUESTIONS

pytest.importorskip("llguidance", reason="needs the extra: pip install 'opdlm[grammar]'")

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "maximum": 999}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def test_the_response_is_what_was_asked_for(tmp_path, capsys):
    """The feature as users meet it: a schema from a file or on the line, a regular expression, a grammar's file."""
    schema, lark = tmp_path / "answer.json", tmp_path / "answer.lark"
    schema.write_text(json.dumps(SCHEMA))
    lark.write_text('start: "the answer is " /[0-9]{1,3}/\n')
    for value in (str(schema), json.dumps(SCHEMA)):
        assert call("generate", QUESTIONS[0], "--json-schema", value) == 0
        assert json.loads(capsys.readouterr().out).keys() == {"answer", "sure"}
    assert call("generate", QUESTIONS[0], "--regex", "[a-f]{4}-[0-9]{2}", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert re.fullmatch("[a-f]{4}-[0-9]{2}", shown["text"])
    assert shown["tokens"] == len(shown["commit_steps"]), "forced tokens are shown with the others"
    assert call("generate", QUESTIONS[0], "--grammar", lark) == 0
    assert re.fullmatch("the answer is [0-9]{1,3}\n", capsys.readouterr().out)


def test_a_file_of_prompts(tmp_path, capsys):
    """Else batches would be answered in free text."""
    rows, output = tmp_path / "prompts.jsonl", tmp_path / "responses.jsonl"
    rows.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    schema = json.dumps(SCHEMA)
    assert call("generate", "--prompts", rows, "--output", output, "--json-schema", schema, "--batch-size", "2") == 0
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(written) == len(QUESTIONS)
    for row in written:
        assert json.loads(row["response"]).keys() == {"answer", "sure"}
        assert row["finish_reason"] == "stop"


def test_a_response_that_is_cut_off_says_so(capsys):
    """Else half of an object would be taken for the model's fault."""
    assert call("generate", QUESTIONS[0], "--json-schema", json.dumps(SCHEMA), "--max-new-tokens", "6") == 0
    assert "--max-new-tokens cut the response off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json-schema", "nowhere.json"], "cannot read nowhere.json"),
        (["--json-schema", "{"], "this is no JSON"),
        (["--json-schema", '{"type": "objet"}'], "Invalid type"),
        (["--regex", "a(b"], "unclosed group"),
        (["--regex", "a", "--json-schema", "{}"], "not allowed with"),
    ],
)
def test_mistakes(flags, message, capsys):
    """Else a user would wait for a model, or see a traceback."""
    assert message in fails(capsys, "generate", QUESTIONS[0], *flags)


def test_no_gap_is_filled_by_a_grammar(capsys):
    """Else the flag would be ignored."""
    assert "fills gaps" in fails(capsys, "generate", "--infill", "3 + 4 = [[MASK:1]]", "--regex", "[0-9]")
