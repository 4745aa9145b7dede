"""What the demo says at its end, and where it writes."""

from pathlib import Path

import pytest

from opdlm.cli.demo import _free_folder, _verdict
from opdlm.records.evaluation import Comparison, Evaluation, Score


def evaluation(correct: int, seconds: float, decoding: str = "", empty: int = 0) -> Evaluation:
    row = Score(family="maths", tag=None, n=10, correct=correct, tokens=100, forwards=50, empty=empty)
    return Evaluation(name=f"student, {decoding}", rows=(row,), seconds=seconds, decoding=decoding)


def test_a_student_that_is_worse_and_slower_is_called_so() -> None:
    """Else the first thing that people see would be a bad model without a word."""
    students = (evaluation(9, 0.1, "static"), evaluation(4, 2.0, "prefix:0.95", empty=6))
    comparison = Comparison(teacher=evaluation(10, 1.0), students=students)
    line, hint = _verdict(comparison, "prefix:0.95")
    assert "worse than its teacher (40.0% right against 100.0%) and slower here (50 tokens/s against 100)" in line
    assert hint.startswith("note: student, prefix:0.95: 6 of 10 responses are empty")
    (line,) = _verdict(Comparison(teacher=evaluation(9, 1.0), students=students[:1]), "static")
    assert "as good as its teacher" in line
    assert "faster here" in line


def test_a_second_demo_leaves_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `opdlm demo` after `opdlm demo --quick` would be refused, or would delete a folder."""
    monkeypatch.chdir(tmp_path)
    assert _free_folder() == "opdlm-demo"
    (tmp_path / "opdlm-demo").mkdir()
    (tmp_path / "opdlm-demo-2").write_text("a user's file")
    assert _free_folder() == "opdlm-demo-3"
