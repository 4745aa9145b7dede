"""Conversions by several processes (gloo, on the CPU, one thread each), as a launcher would start them."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PRELOADED = ["opdlm.distill.api", "opdlm.parallel.sharding", "peft", "rollouts"]


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns in each of `count` processes; it is of a module that tests can import.

    A process that is alone (`count` 1) has no launcher.
    """
    context = multiprocessing.get_context("forkserver")  # it imports the libraries once
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.SimpleQueue()
    started = []
    for number in range(count):
        launch = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
        values = {name: str(value) for name, value in launch.items()} | {"MASTER_ADDR": "127.0.0.1"}
        started.append(context.Process(target=_process, args=(answers, number, values, work, arguments)))
        started[-1].start()
    found = {number: pickle.loads(answer) for number, answer in (answers.get() for _ in started)}
    for process in started:
        process.join()
    failures = [answer for answer in found.values() if isinstance(answer, _Failure)]
    assert not failures, failures[0].text
    return [found[number] for number in range(count)]


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _process(
    answers: Any, number: int, launch: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(launch)
    torch.set_num_threads(1)
    try:
        answer = work(*arguments)
    except BaseException:  # the test is to see it
        answer = _Failure(traceback.format_exc())
    answers.put((number, pickle.dumps(answer)))  # plain bytes: tensors would live in this process


# --- what processes do --------------------------------------------------------------------------------------------


def converted(model: str, prompts: list[str], output: Path, settings: dict[str, Any]) -> list[list[torch.Tensor]]:
    """A conversion; the gradients of each update, whole, before they are clipped."""
    from opdlm.distill.api import convert
    from opdlm.distill.update import Updater
    from opdlm.parallel.tensors import whole_tensor

    seen, update = [], Updater.update

    def watch(updater: Updater, *values: Any) -> float:
        seen.append([whole_tensor(p.grad).clone() for p in updater.parameters if p.grad is not None])
        return update(updater, *values)

    Updater.update = watch  # type: ignore[method-assign]
    try:
        convert(model, prompts, output, **settings)
    finally:
        Updater.update = update  # type: ignore[method-assign]
    return seen
