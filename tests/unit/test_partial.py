"""Files of lines that a later call goes on with."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from opdlm.cli.partial import check_output, finish, kept_lines, more_lines, partial_of
from opdlm.errors import OutputExistsError, RecordError

MADE_WITH = {"model": "m", "settings": {"seed": 0}, "weights": "abc"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A file of which three lines are written."""
    path = tmp_path / "out.jsonl"
    with closing(more_lines(path, MADE_WITH)) as lines:
        for number in range(3):
            lines.write({"number": number})
    return path


def test_it_goes_on_behind_what_is_there(output: Path) -> None:
    """Without it a row would be written twice, or the line of the settings would stand among the rows."""
    assert kept_lines(output, MADE_WITH) == [{"number": number} for number in range(3)]
    with closing(more_lines(output, MADE_WITH)) as lines:
        lines.write({"number": 3})
    finish(output)
    assert [json.loads(line)["number"] for line in output.read_text().splitlines()] == [0, 1, 2, 3]
    assert not partial_of(output).exists()


def test_nothing_written_leaves_nothing(tmp_path: Path) -> None:
    """Else a call that was refused before its first row would block the next one, with other settings."""
    output = tmp_path / "out.jsonl"
    assert kept_lines(output, MADE_WITH) == []
    with closing(more_lines(output, MADE_WITH)):
        pass
    assert list(tmp_path.iterdir()) == []
    partial_of(output).write_text(json.dumps({"model": "other"}) + "\n")  # as earlier versions left it
    check_output(output, resume=False)
    assert kept_lines(output, MADE_WITH) == []


def test_a_line_that_was_cut_off_is_written_again(output: Path) -> None:
    """Without it a kill in the middle of a line would end in a file that cannot be read."""
    partial = partial_of(output)
    whole = partial.read_bytes()
    partial.write_bytes(whole + b'{"number": 3, "te')
    assert len(kept_lines(output, MADE_WITH)) == 3
    assert partial.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"{broken", b"\xff\xfe", b"[1]", b"", b"[" * 100_000])
def test_damage_elsewhere_names_its_line(output: Path, damage: bytes) -> None:
    """Without it there would be a traceback, or a result without what the line held."""
    partial = partial_of(output)
    lines = partial.read_bytes().split(b"\n")
    partial.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    before = partial.read_bytes()
    with pytest.raises(RecordError, match=r"out.jsonl.partial, line 3 is damaged; remove it and all lines below it"):
        kept_lines(output, MADE_WITH)
    assert partial.read_bytes() == before


def test_other_settings_and_other_weights_are_refused(output: Path) -> None:
    """Else one file would hold the answers of two models, and nobody could tell."""
    with pytest.raises(RecordError, match="other settings"):
        kept_lines(output, {**MADE_WITH, "settings": {"seed": 1}})
    with pytest.raises(RecordError, match=r"written by other weights than m .* put those back"):
        kept_lines(output, {**MADE_WITH, "weights": "abd"})
    assert len(kept_lines(output, MADE_WITH)) == 3


def test_a_file_of_an_earlier_version_goes_on(output: Path) -> None:
    """It does not say which weights wrote it; hours of answers are no reason to be asked again."""
    partial = partial_of(output)
    heading, *lines = partial.read_text().splitlines()
    old = {name: value for name, value in json.loads(heading).items() if name != "weights"}
    partial.write_text("\n".join([json.dumps(old), *lines]) + "\n")
    assert len(kept_lines(output, MADE_WITH)) == 3
    with pytest.raises(RecordError, match="other settings"):
        kept_lines(output, {**MADE_WITH, "settings": {"seed": 1}})


def test_lines_of_an_earlier_call_are_not_lost(output: Path) -> None:
    """Without it a call without --resume would begin anew over them."""
    with pytest.raises(OutputExistsError, match="holds rows of an earlier call"):
        check_output(output, resume=False)
    check_output(output, resume=True)
