"""The search ends where it must, compares fairly, and writes what it found without losing what was there."""

import json

import pytest

from opdlm.checkpoints import tuned
from opdlm.checkpoints.tuned import EVIDENCE, own_folder, write_decoding
from opdlm.cli.tune import _share
from opdlm.core.types import Geometry
from opdlm.errors import StorageError, UsageError
from opdlm.evals.compare import greedy, usual_decodings
from opdlm.evals.tuning import raced, search
from opdlm.records.tuning import Trial, Tuning, difference_interval


def trial(decoding, right, of=100, speed=1.0):
    return Trial(
        decoding=decoding, quality=(1.0,) * right + (0.0,) * (of - right), tokens=100, forwards=50, seconds=100 / speed
    )


def tuning(trials, max_drop=0.01):
    return Tuning(
        measure="accuracy",
        texts=100,
        reference=trials[0].decoding,
        trials=tuple(trials),
        max_drop=max_drop,
        batch_size=1,
    )


TRIALS = {
    "sequential": trial("sequential", 90),
    "prefix:0.9": trial("prefix:0.9", 89, speed=2),
    "prefix:0.8": trial("prefix:0.8", 88, speed=3),
    "prefix:0.5": trial("prefix:0.5", 60, speed=5),
    "prefix:0.1": trial("prefix:0.1", 50, speed=9),
    "checked": trial("checked", 90, speed=1.5),
}


def test_the_fastest_that_loses_no_more_is_chosen():
    """Without it a faster decoding that loses more would become the default, or a slow one stay."""
    found = tuning(list(TRIALS.values()))
    assert found.chosen == "prefix:0.9"
    assert [one.decoding for one in found.in_order()][:4] == ["prefix:0.9", "checked", "sequential", "prefix:0.8"]
    assert tuning(list(TRIALS.values()), max_drop=0.02).chosen == "prefix:0.8"
    assert tuning(list(TRIALS.values()), max_drop=0).chosen == "checked"
    assert tuning([TRIALS["sequential"], TRIALS["prefix:0.1"]]).chosen == "sequential"


def test_a_ladder_is_climbed_until_the_loss_is_sure():
    """Without it hours would go into thresholds that lose ever more, or a ladder end at the first unlucky text."""
    asked = []

    def measure(decoding):
        asked.append(decoding)
        return TRIALS[decoding]

    ladders = [["prefix:0.9", "prefix:0.8", "prefix:0.5", "prefix:0.1"], ["checked", "sequential"]]
    found = search(measure, "sequential", ladders, 0.01)
    assert asked == ["sequential", "prefix:0.9", "prefix:0.8", "prefix:0.5", "checked"]
    assert [one.decoding for one in found] == asked


def test_the_finalists_are_timed_again():
    """Without it one disturbed measurement would decide between decodings of nearly the same speed."""
    trials = list(TRIALS.values())
    quick = {"checked": trial("checked", 90, speed=4)}
    again = tuning(raced(trials, tuning(trials).in_order(), lambda decoding: quick.get(decoding, TRIALS[decoding])))
    assert again.chosen == "checked"
    assert [one.decoding for one in again.trials] == list(TRIALS)
    slow = tuning(raced(trials, tuning(trials).in_order(), lambda decoding: trial(decoding, 90, speed=0.1)))
    assert slow.trials == tuple(trials)


def test_intervals_of_paired_differences():
    """Without it small samples would look surer than they are. First value: Agresti and Min's own formula, by hand."""
    ours, theirs = trial("a", 40), trial("b", 44)
    low, high = difference_interval(ours, theirs)  # 4 of 100 pairs differ, all one way
    mean, variance = -4 / 102, (4 + 1) / 102 - (4 / 102) ** 2
    assert (low + high) / 2 == pytest.approx(mean)
    assert high - low == pytest.approx(2 * 1.959964 * (variance / 102) ** 0.5, rel=1e-5)
    low, high = difference_interval(ours, ours)
    assert low < 0 < high
    assert tuning([trial("r", 90), trial("x", 90)]).shown(trial("x", 90)) is False
    many = [trial("r", 9000, 10_000), trial("x", 9000, 10_000)]
    assert tuning(many).shown(many[1])


def test_shares_of_percent():
    """Without it 1 could mean all or a hundredth."""
    assert _share("1%") == _share("0.01") == 0.01
    for wrong in ("1", "100%", "-1%", "x", ""):
        with pytest.raises(UsageError, match="such as 1%"):
            _share(wrong)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"block_diffusion": {"block_size": 4}}))
    config = {"eos_token_id": [3], "block_diffusion": {"decoding": {"kind": "prefix", "threshold": 0.95}, "seed": 7}}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text("# x\n| a | b |\n| default decoding | prefix (threshold 0.95) |\nend\n")
    return tmp_path


def test_the_choice_is_written_and_can_be_undone(folder):
    """Without it the evidence, other settings, or the old default would be lost."""
    before = (folder / "generation_config.json").read_text()
    backup = write_decoding(folder, "checked", {"chosen": "checked"})
    after = json.loads((folder / "generation_config.json").read_text())
    assert after["block_diffusion"]["decoding"]["kind"] == "checked"
    assert (after["block_diffusion"]["seed"], after["eos_token_id"]) == (7, [3])
    assert after[EVIDENCE] == {"chosen": "checked"}
    assert backup.read_text() == before
    assert "checked (drafts 64, auto False)" in (folder / "README.md").read_text()
    second = write_decoding(folder, "prefix:0.9", {})
    assert second != backup
    assert backup.read_text() == before
    backup.rename(folder / "generation_config.json")
    assert (folder / "generation_config.json").read_text() == before


def test_a_failed_write_changes_nothing(folder, monkeypatch):
    """Without it a full disk would leave a model without its generation config."""
    before = (folder / "generation_config.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuned.Path, "replace", full)
    with pytest.raises(StorageError, match="nothing has changed"):
        write_decoding(folder, "checked", {})
    assert (folder / "generation_config.json").read_text() == before
    assert not list(folder.glob(".*"))


def test_only_a_model_that_is_here_is_written(folder, tmp_path):
    """Without it the search would run for hours and then have nowhere to write."""
    assert own_folder(folder) == folder
    with pytest.raises(UsageError, match="--dry-run"):
        own_folder(tmp_path / "nobody/hub-model")


@pytest.mark.parametrize(
    "default",
    [
        "static",
        "static:2",
        "dynamic:0.98",
        "checked",
        "prefix:0.97",
        "klass:0.9",
        "verified",
        "verified:auto",
        "verified:2",
    ],
)
def test_a_models_default_is_among_what_it_is_compared_by(default: str) -> None:
    """Else `eval` would show everything but what `tune` has chosen; or the same thing twice."""
    decoding = greedy(default, 8).decoding
    compared = [greedy(one, 8).decoding for one in usual_decodings(decoding, Geometry(4, "shifted", "causal"))]
    assert compared.count(decoding) == 1
    assert len({one.model_dump_json() for one in compared}) == len(compared)
