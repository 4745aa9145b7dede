"""`opdlm report`, and the page that a conversion refreshes while it trains."""

import json
import re

import pytest

from cli_support import SMALL, call, fails
from opdlm.records.run_folder import RunFolder
from opdlm.report import html


@pytest.fixture(scope="module")
def run(ar_model, prompts, tmp_path_factory):
    """A conversion of two rollouts that refreshed its page after each."""
    output = tmp_path_factory.mktemp("report") / "run"
    pages = []

    with pytest.MonkeyPatch.context() as patch:
        written = html._write

        def keep(path, content):
            pages.append(content.decode())
            written(path, content)

        patch.setattr(html, "_write", keep)
        words = ("--prompts", prompts, "--output", output, "--device", "cpu", "--report-every", "1")
        assert call("convert", ar_model, *words, *SMALL) == 0
    return output, pages


def test_the_page_is_refreshed_while_it_trains(run):
    """Else whoever waits would see nothing before the end, or the end not at all."""
    output, pages = run
    assert len(pages) == 3  # after each rollout, and when it is known what it was worth
    assert "1 of 2, not finished" in pages[0]
    assert "not finished" not in pages[-1]
    assert re.search(r"agreement with the teacher</th><td>[\d.]+ % before, [\d.]+ % after", pages[-1])
    assert (output / "report.html").read_text("utf-8") == pages[-1]


def test_rollouts_are_kept_with_what_was_thought(run):
    """Else the viewer would have no words, no alternatives and no KL of a real run."""
    kept = RunFolder(run[0]).kept_rollouts()
    assert list(kept) == [1, 2]
    for rows in kept.values():
        for row in rows:
            assert row.prompt
            assert len(row.texts) == len(row.token_ids)
            assert row.kl is not None
            assert all(value is not None and value >= 0 for value in row.kl)
            assert row.alternatives is not None
            assert all(one.text for place in row.alternatives for one in place)
            assert row.decoding == "dynamic:0.9"


def test_report_of_one_and_of_two(run, tmp_path, capsys):
    """Else the command would write elsewhere than it says."""
    output, _ = run
    (output / "report.html").unlink()
    assert call("report", output) == 0
    assert str(output / "report.html") in capsys.readouterr().out
    target = tmp_path / "both.html"
    assert call("report", output, output / ".", "--output", target, "--figures", tmp_path / "figures") == 0
    assert target.is_file()
    assert (tmp_path / "figures" / "loss.png").is_file()


def test_mistakes(run, tmp_path, capsys):
    """Else a mistake would end in a traceback, or in a page where nobody looks."""
    assert "no run given" in fails(capsys, "report")
    assert "--output" in fails(capsys, "report", run[0], run[0])
    assert "holds no config.toml" in fails(capsys, "report", tmp_path / "missing")
    assert "cannot be written" in fails(capsys, "report", run[0], "--output", tmp_path / "no" / "page.html")


def test_an_evaluation_joins_the_next_report(run, capsys):
    """Else the line in the page that says how to add it would be wrong."""
    output, _ = run
    problems = output.parent / "problems.jsonl"
    problems.write_text(json.dumps({"prompt": "one", "answer": "two", "family": "edit"}) + "\n")
    words = ("--problems", problems, "--decoding", "static", "--max-new-tokens", "6", "--device", "cpu")
    assert call("eval", output, *words, "--json", output / "evaluation.json") == 0
    assert call("report", output) == 0
    page = (output / "report.html").read_text("utf-8")
    assert "edit (1)" in page
    assert "Not evaluated yet" not in page
