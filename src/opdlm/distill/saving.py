"""Checkpoints that are written beside the training: a copy is made at once, a thread writes it."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.parallel.interrupts import held


class Writer:
    """Writes one thing at a time in a thread of its own. What goes wrong there is raised where training asks."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, write: Callable[[], object]) -> None:
        """Starts `write`, when the one before is done."""
        self.wait()
        with held():
            # A second Ctrl-C ends the process at once: a daemon does not keep it.
            self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Until nothing is written any more. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what went wrong, once; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException as error:  # noqa: BLE001 - nobody hears of it in a thread: `check` raises it again
            self._error = error


def copied(state: Any) -> Any:
    """The nested `state` with copies of its tensors, in the CPU's memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: copied(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(copied, state))
    return state


def checkpoint_bytes(student: BlockDiffusionModel) -> int:
    """What a checkpoint takes, on the disk and as a copy in memory: what trains, with the two moments of AdamW.

    An adapter is there twice, in the model's folder and in the training state.
    """
    parameters = list(student.parameters())
    trained = sum(one.numel() * one.element_size() for one in parameters if one.requires_grad)
    return (3 if all(one.requires_grad for one in parameters) else 4) * trained
