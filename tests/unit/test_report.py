"""The page about runs, made from their records."""

import json
import re
from pathlib import Path

import pytest

from opdlm.distill.trackers import _flat
from opdlm.errors import RecordError, StorageError
from opdlm.records.run_folder import RunFolder
from opdlm.records.worth import Validation
from opdlm.report.figures import CURVES
from opdlm.report.html import MOST_ROLLOUTS, _spread, write_report
from opdlm.report.words import amount, duration
from report_runs import HOSTILE, evaluation, metrics, trajectory, write_run


def page_of(*runs: Path, to: Path) -> str:
    return write_report(runs, to / "page.html").read_text("utf-8")


def embedded(page: str) -> list[list[dict]]:
    """The texts for the viewers."""
    blocks = re.findall(r'<script type="application/json" class="texts">(.*?)</script>', page, re.DOTALL)
    return [json.loads(block) for block in blocks]


def test_numbers_of_the_records_are_in_the_page(tmp_path: Path) -> None:
    """Else the page could show numbers of its own."""
    page = page_of(write_run(tmp_path / "run"), to=tmp_path)
    for expected in (
        "some/model",
        "4,000 response tokens",
        "12.4 TFLOP",
        "22 s",
        "1.00 GiB",
        "96.0 %",  # maths of the default decoding
        "87 % to 99 %",
        "recall, unseen",
        "prefix:0.95",
        "rollout</th><td>8.0 s, 36.4 %",
    ):
        assert expected in page, expected
    retained = re.search(r"retained</th>(.*?)</tr>", page)
    assert retained is not None
    assert "97.9 %" in retained[1]


def test_a_text_of_a_model_is_never_html(tmp_path: Path) -> None:
    """Else whoever opens a report would run what a model, or a prompt, happened to say."""
    run = write_run(tmp_path / "<b>run</b> $x_1$")
    page = page_of(run, to=tmp_path)
    assert page.count("<script") == 2  # the texts as JSON and the viewer
    assert "<img" not in page
    assert "<b>" not in page
    (texts,) = embedded(page)
    assert texts[0]["record"]["texts"][-1] == HOSTILE
    assert texts[0]["record"]["kl"][2] is None


def test_nothing_from_outside(tmp_path: Path) -> None:
    """Else the page would need a network, and tell somebody that it was opened."""
    page = page_of(write_run(tmp_path / "run"), to=tmp_path)
    assert "http" not in page
    assert not re.search(r"""(src|href|xlink:href)=["'](?!#)""", page.replace("src=x", "").replace(HOSTILE, ""))


def test_several_runs_share_their_axes(tmp_path: Path) -> None:
    """Else two runs could not be compared by eye."""
    runs = write_run(tmp_path / "one"), write_run(tmp_path / "two", evaluated=False)
    page = page_of(*runs, to=tmp_path)
    loss = re.search(r'<svg[^>]*aria-label="Loss">(.*?)</svg>', page, re.DOTALL)
    assert loss is not None
    assert ">one<" in loss[1]
    assert ">two<" in loss[1]
    assert "two: no answers were compared" in page
    assert len(embedded(page)) == 2
    again = page_of(tmp_path / "one", write_run(tmp_path / "other" / "one"), to=tmp_path)
    assert "other/one" in again  # two folders of one name


def test_a_lossless_run(tmp_path: Path) -> None:
    """Its text is the original's, so that what counts is that it is, and how many drafts hold."""
    run = write_run(tmp_path / "run", lossless=True)
    folder = RunFolder(run)
    found = folder.kept_evaluation()
    assert found is not None
    student = evaluation(49, 400, "verified", same_text=100, acceptance=(0.62, 0.4))
    folder.keep_evaluation(found.model_copy(update={"students": (student,)}))
    page = page_of(run, to=tmp_path)
    assert "same text as the teacher" in page
    assert "100 of 100" in page
    assert "62 %, 40 %" in page
    assert "0.40 accepted drafts per forward" in page
    assert embedded(page)[0][0]["record"]["verified"] is True


def test_figures_as_files(tmp_path: Path) -> None:
    """Else a figure could not go into a paper; and figures of the page must not have the colours of paper alone."""
    write_report([write_run(tmp_path / "run")], tmp_path / "page.html", tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    for name in ("frontier-forward", "frontier-seconds", "tasks", "loss", "tokens-per-forward", "time"):
        assert {f"{name}.svg", f"{name}.png"} <= names
    assert (tmp_path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "#1b1f24" in (tmp_path / "figures" / "loss.svg").read_text("utf-8")
    assert not any(name.endswith(".partial") for name in names)
    page = (tmp_path / "page.html").read_text("utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--ink)" in drawn
    assert "#1b1f24" not in drawn


def test_ticks_are_round(tmp_path: Path) -> None:
    """Else the reader would meet 4.63 and 2.32 on an axis."""
    page = page_of(write_run(tmp_path / "run"), to=tmp_path)
    loss = re.search(r'aria-label="Loss">(.*?)</svg>', page, re.DOTALL)
    assert loss is not None
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", loss[1])
    assert {"0", "1 k", "2 k", "4 k"} <= set(ticks)
    assert {"1", "2", "3", "4"} <= set(ticks)


def test_curves_are_what_trackers_get() -> None:
    """Else a run would look otherwise in tensorboard than in its report."""
    seen = metrics(1, 4, validation=Validation.of([5], tokens=10, agreed=7, forwards=6))
    logged = dict(_flat(seen.to_json(), "/"))
    for curve in CURVES:
        value, scale = curve.value(seen), 2**30 if curve.name == "peak_memory_bytes" else 1
        assert value is not None
        assert value * scale == pytest.approx(logged[curve.name])


def test_a_run_that_is_not_there_or_not_yet(tmp_path: Path) -> None:
    """Else `opdlm report` would end in a traceback."""
    with pytest.raises(RecordError, match=r"holds no config\.toml"):
        write_report([tmp_path], tmp_path / "page.html")
    run = write_run(tmp_path / "run", rollouts=0)
    with pytest.raises(RecordError, match="no metrics"):
        write_report([run], tmp_path / "page.html")
    run = write_run(tmp_path / "damaged")
    (run / "rollouts" / "rollout-000002.json").write_text('[{"token_ids": 3}]')
    with pytest.raises(RecordError, match=r"rollout-000002\.json"):
        write_report([run], tmp_path / "page.html")
    with pytest.raises(StorageError, match="could not be written"):
        write_report([write_run(tmp_path / "whole")], tmp_path / "missing" / "page.html")


def test_a_run_under_way_and_one_of_an_earlier_version(tmp_path: Path) -> None:
    """Else a page could not be refreshed while it trains, nor old runs be shown."""
    run = write_run(tmp_path / "run", rollouts=1, evaluated=False)
    old = {"positions": [4, 5], "token_ids": [7, 8], "commit_steps": [0, 1], "prompt_ids": [1], "block_size": 4}
    (run / "rollouts" / "rollout-000001.json").write_text(json.dumps([{**old, "forwards": 2, "version": 1}]))
    page = page_of(run, to=tmp_path)
    assert "1 of 4, not finished" in page
    (text,) = embedded(page)[0]
    assert text["record"]["token_ids"] == [7, 8]
    assert "kl" not in text["record"]


def test_rollouts_from_the_first_to_the_last() -> None:
    """Else a long run would make a page of gigabytes, or hide how it began or ended."""
    shown = _spread(range(1, 1001))
    assert len(shown) == MOST_ROLLOUTS
    assert shown[0] == 1
    assert shown[-1] == 1000
    assert _spread([3, 5]) == [3, 5]


def test_words() -> None:
    """Else 999,600 could be "1e+03 k", and an hour "60 min"."""
    assert [amount(value) for value in (0, 12, 999.4, 999_600, 1.234e15)] == ["0", "12", "999", "1 M", "1.23 P"]
    assert amount(3.1e12, "FLOP") == "3.1 TFLOP"
    assert [duration(value) for value in (1.24, 59.6, 3600, 7500, 100_000)] == [
        "1.2 s",
        "1 min",
        "1 h",
        "2 h 5 min",
        "1 d 3 h",
    ]


def test_a_trajectory_survives_json() -> None:
    """Else a viewer would show something else than was recorded."""
    made = trajectory()
    data = json.loads(json.dumps(made.to_json()))
    assert type(made).from_json(data, "file") == made
