"""Several processes, each with a device and a copy of all weights: torch's DistributedDataParallel.

Everything that one of them waits for in the others is a call that all of them make: an operation of torch.distributed.
It fails where a process is gone (gloo: at once, when the connection breaks; nccl: the launcher ends those that wait).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from opdlm.errors import RankFailedError
from opdlm.parallel.interrupts import Noted
from opdlm.parallel.ranks import OneProcess

_T = TypeVar("_T")

_DONE, _INTERRUPTED, _FAILED = range(3)
_SYNCS_BUFFERS = next(  # torch 2.13 has the first name, and warns of the second
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)


class Processes(OneProcess):
    """The processes of torch's default group, which must be there. Weights are whole in each of them."""

    def __init__(self) -> None:
        self.number, self.count = dist.get_rank(), dist.get_world_size()
        self.saves = self.number == 0
        self._signals = Noted()

    def sum(self, *values: float) -> list[float]:
        numbers = torch.tensor([*values, self._signals.came], dtype=torch.float64)  # gloo, on CUDA too
        dist.all_reduce(numbers)
        *sums, interrupted = numbers.tolist()
        if interrupted:
            with self._signals.let_through():  # the handler of this process says what happens, and raises
                raise KeyboardInterrupt
        return sums

    def gathered(self, mine: _T) -> list[_T]:
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, mine)
        return found

    @contextmanager
    def agreed(self) -> Iterator[None]:
        outcome = _FAILED
        try:
            with self._signals.let_through():
                yield
            outcome = _DONE
        except KeyboardInterrupt:
            outcome = _INTERRUPTED
        finally:
            outcomes = self.gathered(outcome)
            first = outcomes.index(_FAILED) if _FAILED in outcomes else self.number
            if first != self.number:  # of several with the same failure, one says it
                raise RankFailedError(f"process {first} of {self.count} failed; its own message says why")
        if _INTERRUPTED in outcomes:
            raise KeyboardInterrupt

    def by_one(self, work: Callable[[], _T]) -> _T:
        result: list[Any] = [None]
        with self.agreed():
            if self.saves:
                result = [work()]
        dist.broadcast_object_list(result)
        return result[0]

    @contextmanager
    def together(self, way_out: str) -> Iterator[None]:
        """Around all that they do: an interruption of any of them waits for the next place where all can hear of it.

        Raises RankFailedError, with the `way_out`, where a process ended without a word.
        """
        with self._signals.kept():
            try:
                yield
            except RuntimeError as error:
                if _is_lost(error):
                    raise RankFailedError(f"another process of this run is gone; {way_out}") from error
                raise

    def wrapped(self, module: nn.Module) -> nn.Module:
        options: dict[str, Any] = {_SYNCS_BUFFERS: False}  # they are constants
        # No device_ids: inputs are where they belong already.
        return DistributedDataParallel(module, gradient_as_bucket_view=True, **options)

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else cast(DistributedDataParallel, module).no_sync()


def _is_lost(error: RuntimeError) -> bool:
    """Whether a process that this one waited for is gone. gloo has no error of its own: it names its files."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
