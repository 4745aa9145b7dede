"""Files that commands write where the user says."""

import json
import os
from pathlib import Path

import pytest

from opdlm.cli.outputs import JsonLines, check_apart, json_lines, write_json
from opdlm.errors import UsageError


def test_an_earlier_file_stays_until_there_is_a_line(tmp_path: Path) -> None:
    """Else a call that is refused before its first answer would empty the answers of an earlier one."""
    path = tmp_path / "answers.jsonl"
    path.write_text("earlier\n")
    with json_lines(path):
        pass
    assert path.read_text() == "earlier\n"
    with json_lines(path) as lines:
        lines.write({"a": 1})
        lines.write({"a": 2})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_half_a_surrogate_pair_is_written(tmp_path: Path) -> None:
    """JSON may hold one, UTF-8 may not: without it hours of answers would end in a traceback."""
    content = {"id": "a \ud83d b", "text": "é 😀 \\ud83d"}
    lines, numbers = tmp_path / "lines.jsonl", tmp_path / "numbers.json"
    with json_lines(lines) as file:
        file.write(content)
    write_json(numbers, content)
    assert json.loads(lines.read_text("utf-8")) == json.loads(numbers.read_text("utf-8")) == content
    assert "é 😀" in lines.read_text("utf-8")


def test_a_heading_stands_once(tmp_path: Path) -> None:
    """Without it a file that is gone on with would have one among its lines."""
    path = tmp_path / "lines.jsonl"
    for number in range(2):
        lines = JsonLines(path, "a", heading={"made": "with"})
        lines.write({"number": number})
        lines.close()
    assert path.read_text().splitlines() == ['{"made": "with"}', '{"number": 0}', '{"number": 1}']


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Prompts, also by two links, a model and a run."""
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to("prompts.jsonl")
    os.link(tmp_path / "prompts.jsonl", tmp_path / "hard.jsonl")
    for name in ("model/config.json", "gguf/a.gguf", "run/config.toml", "run/metrics.jsonl", "run/evaluation.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "blob").write_text("{}\n")
    (tmp_path / "model" / "linked.json").symlink_to(tmp_path / "blob")
    (tmp_path / "elsewhere.json").symlink_to(tmp_path / "model" / "config.json")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "config.json").write_text("{}\n")
    return tmp_path


def test_what_is_read_is_not_overwritten(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it `eval --prompts p.jsonl --answers p.jsonl` would leave the answers and no prompts."""
    monkeypatch.chdir(places)
    for output in ("prompts.jsonl", "link.jsonl", "hard.jsonl", "model/../prompts.jsonl", places / "prompts.jsonl"):
        with pytest.raises(UsageError, match=r"--json .* would overwrite what the command reads; name another file"):
            check_apart({"--json": output}, (None, "org/data-set", "prompts.jsonl"))
    check_apart({"--json": "new.json", "--answers": None}, ("prompts.jsonl", "new.json"))


def test_files_of_models_and_runs_are_not_overwritten(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it `tune --json MODEL/config.json` would leave weights that nothing can load."""
    monkeypatch.chdir(places)
    models = (None, "org/model", "model", "run", "gguf")
    of_model = ("model/config.json", "model/linked.json", "elsewhere.json", "gguf/a.gguf")
    for output in (*of_model, "run/config.toml", "run/metrics.jsonl", "run/model/config.json"):
        with pytest.raises(UsageError, match="would overwrite a file in the folder of a model; name another file"):
            check_apart({"--json": output}, (), models)
    with pytest.raises(UsageError, match="what the command reads"):
        check_apart({"--json": "gguf/a.gguf"}, (), ("gguf/a.gguf",))
    check_apart({"--json": "run/evaluation.json", "--answers": "model/new.jsonl"}, (), models)  # as the report has it


def test_two_outputs_are_two_files(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the numbers would take the place of the answers."""
    monkeypatch.chdir(places)
    for one, other in (
        ("new.json", "model/../new.json"),
        ("link.jsonl", "prompts.jsonl"),
        ("hard.jsonl", "link.jsonl"),
    ):
        with pytest.raises(UsageError, match=r"--json and --answers are both written to .* a file of its own"):
            check_apart({"--json": one, "--answers": other}, ())
