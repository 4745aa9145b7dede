"""The metrics of a run in the programs that people watch their runs with."""

import json

import pytest

from cli_support import SMALL, call, fails
from opdlm.distill.api import convert

tracking = pytest.importorskip("accelerate.tracking")

SETTINGS = {
    "device": "cpu",
    "rollouts": 2,
    "prompts_per_rollout": 2,
    "rows_per_update": 1,
    "response_length": {"start": 8, "end": 8},
}


class Scripted(tracking.GeneralTracker):
    """Keeps what it is told."""

    name = "wandb"
    requires_logging_directory = False
    made: "list[Scripted]" = []  # noqa: RUF012

    def __init__(self, project: str, **known: object) -> None:
        super().__init__()
        self.known, self.config, self.logged, self.events = (project, known), {}, {}, ["made"]
        Scripted.made.append(self)

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self.events.append("started")

    def store_init_configuration(self, values: dict) -> None:
        self.config = values

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        self.logged[step] = values

    def finish(self) -> None:
        self.events.append("finished")


@pytest.fixture
def scripted(monkeypatch):
    """wandb's place, taken."""
    monkeypatch.setattr(Scripted, "made", [])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Scripted)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    return Scripted.made


def test_every_number_and_the_settings_arrive(ar_model, tmp_path, scripted):
    """Else a figure would lack a curve, or a run be there without what it was run with."""
    convert(ar_model, ["a", "b", "c"], tmp_path / "run", tracker="wandb", eval_count=1, eval_every=1, **SETTINGS)
    (tracker,) = scripted
    assert tracker.known == ("opdlm", {"name": "run"})
    assert tracker.events == ["made", "started", "finished"]
    assert tracker.config["response_length.end"] == 8
    assert tracker.config["rollout_decoding.kind"]
    assert all(isinstance(value, bool | int | float | str) for value in tracker.config.values())
    assert sorted(tracker.logged) == [0, 1, 2]
    assert 0 <= tracker.logged[0]["validation/agreement"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        told = tracker.logged[line["rollout"]]
        for name in ("loss", "gradient_norm", "learning_rate", "updates", "tokens_per_forward", "stopped_rows"):
            assert told[name] == line[name]
        for group in ("flops", "seconds", "total", "validation"):
            assert {name: told[f"{group}/{name}"] for name in line[group]} == line[group]


def test_a_tracker_is_closed_where_the_run_fails(ar_model, tmp_path, scripted):
    """Else the last numbers of a run that fails, the ones that explain it, would be lost."""

    def fail(_metrics: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, ["a", "b"], tmp_path / "run", tracker=["wandb"], on_step=fail, **SETTINGS)
    (tracker,) = scripted
    assert tracker.events[-1] == "finished"
    assert 1 in tracker.logged


def test_tensorboard_reads_it(ar_model, prompts, tmp_path):
    """Else the names or the values could be such that tensorboard drops them."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = ("--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--tracker", "tensorboard")
    assert call("convert", ar_model, *words) == 0
    events = loader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.step for event in events.Scalars("validation/agreement")] == [0, 2]


def test_what_is_missing_is_named(ar_model, prompts, tmp_path, capsys, monkeypatch):
    """Else the run would end in a traceback, or worse, go on and be seen nowhere."""
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    words = ("convert", ar_model, "--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--tracker")
    assert "pip install trackio" in fails(capsys, *words, "trackio")
    assert "'tensorboard', 'wandb' or 'trackio'" in fails(capsys, *words, "tensorbord")
    monkeypatch.setitem(__import__("sys").modules, "accelerate.tracking", None)
    assert "pip install 'opdlm[track]'" in fails(capsys, *words, "tensorboard")
    assert not (tmp_path / "run").exists()
