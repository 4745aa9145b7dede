"""Results can be read at every width."""

import io

import pytest
from rich.console import Console

from opdlm.cli.progress import answering
from opdlm.cli.tables import comparison_table
from opdlm.records.evaluation import Comparison, Evaluation, Score, rounding_hints

DECODINGS = ("sequential", "prefix:0.98", "prefix:0.95", "prefix:0.9")
LABELS = (("maths", None), ("recall", None), ("recall", "seen"), ("recall", "unseen"), ("edit", None), ("code", None))


def evaluation(name, decoding="", right=97):
    rows = tuple(Score(family=f, tag=t, n=100, correct=right, tokens=5000, forwards=3000) for f, t in LABELS)
    return Evaluation(name=name, decoding=decoding, seconds=2.0, rows=rows)


def shown(width, terminal=True):
    students = tuple(evaluation("student", decoding, 50 + i) for i, decoding in enumerate(DECODINGS))
    names = {"model": "run", "against": "Qwen/Qwen3-0.6B"}
    comparison = Comparison(teacher=evaluation("teacher"), students=students, **names)
    screen = io.StringIO()
    Console(file=screen, force_terminal=terminal, color_system=None, width=width).print(
        comparison_table(comparison, "400 problems")
    )
    return screen.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_a_terminal_of_any_width_shows_every_word_and_number(width):
    """Else a result would be "tea..." and "mat..." on a usual terminal."""
    text = shown(width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in ("Qwen/Qwen3-0.6B", "400 problems", "teacher", *DECODINGS, "recall unseen", "tokens/forward", "97.0%"):
        assert word in text, word
    assert all(f"{50 + i}.0%" in text for i in range(4))


def test_a_pipe_gets_one_plain_table():
    """Else a log file would hold a part of it, or signs that its reader does not know."""
    text = shown(10_000, terminal=False)
    assert text.isascii()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 1 + len(DECODINGS)
    assert lines[3].startswith("| student, sequential  | 50.0% |")


def test_progress_in_a_pipe_is_lines():
    """Else an evaluation of hours would be silent in a log file, or fill it."""
    screen = io.StringIO()
    with answering(Console(file=screen, force_terminal=False, width=80), every_s=1e9) as show:
        for name in ("teacher", "prefix:0.9"):
            for done in range(101):
                show(name, done, 100)
    ends = [f"{name}: {done} of 100 answers" for name in ("teacher", "prefix:0.9") for done in (0, 100)]
    assert screen.getvalue().splitlines() == ends


@pytest.mark.parametrize(("dtype", "others", "lines"), [("float32", 1, 0), ("bfloat16", 0, 0), ("bfloat16", 1, 1)])
def test_other_texts_in_bfloat16_are_explained(dtype, others, lines):
    """Else a lossless model would look broken on a GPU, where bfloat16 is the default."""
    student = evaluation("student", "verified")
    student = student.model_copy(update={"same_text": student.total.n - others, "acceptance": (0.5,)})
    comparison = Comparison(teacher=evaluation("teacher"), students=(student,), dtype=dtype)
    assert len(rounding_hints(comparison)) == lines
