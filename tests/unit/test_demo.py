"""What the demo says at its end, and where it writes."""

from pathlib import Path

import pytest

from opdlm.cli.demo import Compared, _exactly, _free_folder, _verdict
from opdlm.cli.tables import side_by_side
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


def test_the_first_line_is_what_a_user_would_choose() -> None:
    """Else a reader would take a lossy student for the product, or speeds of one batch size for those of another."""
    exact = [
        Comparison(
            teacher=evaluation(9, seconds),
            students=(evaluation(9, seconds / times, "verified:auto").model_copy(update={"same_text": 10}),),
            batch_size=size,
        )
        for size, seconds, times in ((32, 1.0, 0.9), (1, 10.0, 1.5))
    ]
    lossy = [one.model_copy(update={"students": (evaluation(7, 1.0, "prefix:0.95"),)}) for one in exact]
    table = side_by_side([("lossless", *exact), ("distilled", *lossy)], "title")
    assert [name for name, _ in table.rows] == ["lossless, verified:auto", "original", "distilled, prefix:0.95"]
    assert table.headings[-2:] == ("tokens/s, batch 1", "tokens/s, batch 32")
    assert table.rows[0][1] == ("90.0%", "-", "10 of 10", "2.00", "15", "90")
    line = "; ".join(_exactly(Compared(*exact)))
    assert "10 of 10 answers are the original's" in line
    assert "tokens per second, of the original's: 1.50 one by one, 0.90 in batches of 32" in line
