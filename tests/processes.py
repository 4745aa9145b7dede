"""Conversions by several processes (gloo, on the CPU, one thread each), as a launcher would start them."""

import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch.distributed.tensor import DTensor

from opdlm.distill.loop import Trainer
from opdlm.distill.pair import TrainingPass
from opdlm.distill.update import Updater
from opdlm.parallel import environment
from opdlm.parallel.tensors import whole_tensor
from opdlm.sampling.engine import Engine

PRELOADED = ["opdlm.distill.api", "opdlm.parallel.sharding", "peft", "rollouts"]
PATIENCE_S = 300
Conversion = tuple[Path, dict[str, Any]]
"""The folder of a run, and its settings; `model` and `prompts` among them, or it is resumed."""


class ProcessFailedError(Exception):
    """What happened to a process."""


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns in each of `count` processes, or the ProcessFailedError that it ended with.

    `work` is of a module that tests can import. A process that is alone has no launcher.
    """
    context = multiprocessing.get_context("forkserver")  # it imports the libraries once
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as answers:
        started = []
        for number in range(count):
            launch = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
            values = {name: str(value) for name, value in launch.items()} | {"MASTER_ADDR": "127.0.0.1"}
            answer = Path(answers) / str(number)
            started.append(context.Process(target=_process, args=(answer, values, work, arguments), daemon=True))
            started[-1].start()
        for process in started:
            process.join(PATIENCE_S)
            if process.is_alive():
                process.kill()
        files = [Path(answers) / str(number) for number in range(count)]
        return [pickle.loads(file.read_bytes()) if file.is_file() else ProcessFailedError("killed") for file in files]


def _process(answer: Path, launch: dict[str, str], work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ.update(launch)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that this comes from ignores it
    several = launch["WORLD_SIZE"] != "1"
    if several:  # once, for all conversions
        torch.distributed.init_process_group("gloo")
    try:
        result = work(*arguments)
    except BaseException as error:  # noqa: BLE001 - the test is to see it
        result = ProcessFailedError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    answer.write_bytes(pickle.dumps(result))
    if several and not isinstance(result, ProcessFailedError):
        torch.distributed.destroy_process_group()


# --- what processes do --------------------------------------------------------------------------------------------


def run(output: Path, settings: dict[str, Any]) -> None:
    """Convert, or resume."""
    from opdlm.distill.api import convert, resume

    if "model" in settings:
        convert(output=output, **settings)
    else:
        resume(output, **settings)


@contextmanager
def watching(owner: type, name: str, watch: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, `watch(original, self, ...)` is called in place of a method."""
    original = getattr(owner, name)
    with mock.patch.object(owner, name, lambda self, *values: watch(original, self, *values)):
        yield


def gradients(*conversions: Conversion) -> list[list[list[torch.Tensor]]]:
    """One conversion after the other; of each, the whole gradients of each update before they are clipped."""
    found: list[list[list[torch.Tensor]]] = []

    def watch(update: Callable[..., float], updater: Updater, *values: Any) -> float:
        found[-1].append([whole_tensor(p.grad).clone() for p in updater.parameters if p.grad is not None])
        return update(updater, *values)

    for output, settings in conversions:
        found.append([])
        with watching(Updater, "update", watch):
            run(output, settings)
    return found


def loaded(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Resumes a run; whole weights, state of the optimiser and text as they were before the first update."""
    found: dict[str, Any] = {}

    def watch(restore: Callable[..., None], trainer: Trainer, updater: Updater) -> None:
        restore(trainer, updater)
        student, state, begun = trainer.pair.student, updater.optimiser.state_dict()["state"], trainer._at.begun
        found["weights"] = {name: whole_tensor(p.detach()).clone() for name, p in student.named_parameters()}
        found["optimiser"] = {i: {name: whole_tensor(v).clone() for name, v in one.items()} for i, one in state.items()}
        found["text"] = None if begun.rollout is None else begun.rollout.input_ids.clone()

    with watching(Trainer, "_restore", watch):
        run(output, settings)
    return found


def shares(output: Path, settings: dict[str, Any]) -> dict[str, tuple[int, set[torch.dtype]]]:
    """Converts; what this process holds: how many entries, and of which types."""
    found: dict[str, tuple[int, set[torch.dtype]]] = {}

    def note(name: str, tensors: Iterable[torch.Tensor]) -> None:
        own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        found[name] = sum(tensor.numel() for tensor in own), {tensor.dtype for tensor in own}

    def watch_training(train: Callable[..., Any], trainer: Trainer) -> Any:
        layer = trainer.pair.student.model.base_model.layers[0]
        layer.register_forward_pre_hook(lambda layer, _: note("layer", layer.parameters()))
        note("student", trainer.pair.student.parameters())
        note("teacher", trainer.pair.teacher.model.parameters())
        return train(trainer)

    def watch_update(update: Callable[..., float], updater: Updater, *values: Any) -> float:
        note("gradients", (p.grad for p in updater.parameters if p.grad is not None))
        norm = update(updater, *values)
        note("optimiser", (one["exp_avg"] for one in updater.optimiser.state.values()))
        return norm

    with watching(Trainer, "train", watch_training), watching(Updater, "update", watch_update):
        run(output, settings)
    return found


PLACES = {"writing": (Engine, "step"), "pass": (TrainingPass, "forward"), "update": (Updater, "update")}


def struck(output: Path, settings: dict[str, Any], number: int, how: int, place: str, call: int) -> None:
    """A run in which process `number` gets the signal `how` at a `place`, when it is there for the `call`-th time."""
    calls = itertools.count(1)

    def watch(original: Callable[..., Any], *values: Any) -> Any:
        if environment.number() == number and next(calls) == call:
            os.kill(os.getpid(), how)
        return original(*values)

    with watching(*PLACES[place], watch):
        run(output, settings)
