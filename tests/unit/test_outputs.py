"""Files that commands write where the user says."""

from pathlib import Path

from opdlm.cli.outputs import json_lines


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
