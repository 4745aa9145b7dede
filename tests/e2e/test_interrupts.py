"""A run that is told to stop loses nothing that is done, wherever it is, and says how to go on."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import opdlm.distill
from opdlm.cli.signals import Ending
from opdlm.distill.api import convert, resume
from opdlm.distill.update import Updater
from opdlm.parallel.interrupts import held
from opdlm.records.run_folder import RunFolder
from runs import PROMPTS, SETTINGS, metrics, small_ar_model, weights

CHOSEN = SETTINGS | {"rollouts": 3, "prompts_per_rollout": 3, "save_every_rollouts": 2}
WATCHED = str(Path(opdlm.distill.__file__).parent)


@pytest.fixture(scope="module")
def ar_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_ar_model(tmp_path_factory.mktemp("interrupts"))


@pytest.fixture(scope="module", params=[None, 2], ids=["all weights", "lora"])
def whole(request: pytest.FixtureRequest, ar_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped; and how it was set up."""
    run = tmp_path_factory.mktemp("whole") / "run"
    convert(ar_model, PROMPTS, run, lora_rank=request.param, **CHOSEN)
    return run


@contextmanager
def lines(at: Callable[[int], None]) -> Iterator[None]:
    """Calls `at` with the number of each line of the trainer's own that is executed."""
    count = 0

    def trace(frame: FrameType, event: str, _value: object) -> Any:
        nonlocal count
        code = frame.f_code
        # A line for each tensor of a checkpoint would outnumber all others.
        if not code.co_filename.startswith(WATCHED) or code.co_qualname.startswith(("copied", "checkpoint_bytes")):
            return None
        if event == "line":
            count += 1
            at(count)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def interrupt(at: int, line: int) -> None:
    if line == at:
        signal.raise_signal(signal.SIGINT)


def same(whole: Path, run: Path) -> bool:
    expected, found = weights(whole), weights(run)
    return all(torch.equal(expected[name], found[name]) for name in expected) and metrics(whole) == metrics(run)


@pytest.mark.slow
def test_nothing_that_is_done_is_lost(
    whole: Path, ar_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Ctrl-C would cost what was done since the newest checkpoint, or leave half an update for the whole one.

    The interruption comes at lines of the trainer all over the run; a real one, with Python's own handler.
    """
    settings = CHOSEN | {"lora_rank": RunFolder(whole).settings().lora_rank}
    updaters: list[Updater] = []
    update = Updater.update
    monkeypatch.setattr(Updater, "update", lambda self, *args: updaters.append(self) or update(self, *args))
    began, every = [], [0]

    def started(*_: object) -> None:
        began.append(every[0])

    def note(line: int) -> None:
        every[0] = line

    with lines(note):
        convert(ar_model, PROMPTS, tmp_path / "counted", on_start=started, **settings)
    first, last = began[0], every[0]
    assert same(whole, tmp_path / "counted")
    states = set()
    for share in range(10):
        run, stop = tmp_path / "run", first + (last - first) * share // 10
        updaters.clear()
        with (
            pytest.raises(KeyboardInterrupt),
            lines(lambda n, stop=stop: signal.raise_signal(2) if n == stop else None),
        ):
            convert(ar_model, PROMPTS, run, **settings)
        done = updaters[-1].done if updaters else 0
        checkpoint = RunFolder(run).latest()
        kept = 0 if checkpoint is None else RunFolder.load_state(checkpoint)["updater"]["done"]
        assert kept == done, f"line {stop}: {done} updates were done, {kept} are kept"
        states.add(done)
        resume(run)
        assert same(whole, run), f"line {stop}"
        shutil.rmtree(run)
    assert len(states) > 4, "the interruptions came at a few places only"


def test_an_interruption_while_saving_is_made_good(
    ar_model: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Ctrl-C in the middle of a checkpoint would leave half a one, or none."""
    save, calls = torch.save, []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            Path(args[1]).write_text("half")
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(torch, "save", interrupted)
    settings = CHOSEN | {"lora_rank": RunFolder(whole).settings().lora_rank, "async_save": False}
    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, PROMPTS, tmp_path / "run", **settings)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["rollout-000002"]
    resume(tmp_path / "run")
    assert same(whole, tmp_path / "run")


def test_a_signal_is_held_back_until_the_end() -> None:
    """Else an update would end between two parameters; and in other threads, which none reaches, it must do nothing."""
    before = signal.getsignal(signal.SIGINT)
    reached = []

    def body() -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        body()
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is before
    thread = threading.Thread(target=lambda: held().__enter__() or reached.append("a thread"))
    thread.start()
    thread.join()
    assert reached[-1] == "a thread"


def test_handlers_are_there_while_a_command_runs_and_no_longer() -> None:
    """Else a program that calls the command line would lose its own; and `nohup` would not work."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in names]
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Ending() as ending:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # a second one, as launchers send it
        assert ending.exit_code == 143
    finally:
        signal.signal(signal.SIGHUP, before[2])
    assert [signal.getsignal(number) for number in names] == before


LONG = """
import sys, signal
from pathlib import Path
from opdlm.cli import main
from opdlm.distill import methods
from opdlm.records.run_folder import RunFolder

run, again, *words = sys.argv[1:]
write, count = methods._by_student, 0

def third_never_ends(*args):
    global count
    count += 1
    if count == 3:
        print("third", flush=True)
        while True:
            signal.pause()
    return write(*args)

def saving(*args, **kwargs):
    print("saving", flush=True)
    signal.pause()

methods._by_student = third_never_ends
if again == "again":
    RunFolder.save_state = saving
sys.exit(main.main(words))
"""


def started(ar_model: str, tmp_path: Path, again: str = "") -> subprocess.Popen:
    """A command whose third rollout takes for ever; its third is reached."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    run = tmp_path / "run"
    words = f"""convert {ar_model} --prompts {tmp_path / "prompts.txt"} --output {run} --device cpu --rollouts 4
        --prompts-per-rollout 2 --rows-per-update 1 --response-length.start 6 --response-length.end 12
        --save-every-rollouts 10 --block-size 4 --recipe paper-small"""
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, run, again, *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    until(process, "third")
    return process


def until(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_the_finished_rollouts(name: str, ar_model: str, tmp_path: Path) -> None:
    """Else what a cluster sends before it takes the machine would cost up to ten rollouts."""
    process = started(ar_model, tmp_path)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + getattr(signal, name)
    assert "Traceback" not in err
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "rollout-000002"
    last = out.strip().splitlines()[-1]
    assert last == f"stopped; the newest checkpoint is {checkpoint}. To continue: opdlm convert --resume --output {run}"
    assert checkpoint.is_dir()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(ar_model: str, tmp_path: Path) -> None:
    """Else a slow disk would hold the user."""
    process = started(ar_model, tmp_path, "again")
    process.send_signal(signal.SIGINT)
    until(process, "saving")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert RunFolder(tmp_path / "run").latest() is None
