"""The processes of this run: those that torchrun or accelerate launch started, or this one alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from opdlm.errors import UsageError
from opdlm.parallel import environment
from opdlm.parallel.processes import Processes
from opdlm.parallel.ranks import OneProcess, Ranks

_PATIENCE = timedelta(hours=2)
"""How long processes wait for the slowest: one may write the longest texts, or evaluate alone. A process that has ended
is noticed at once, by its connection or by the launcher."""
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@contextmanager
def launched(device: torch.device, *, sharded: bool, bfloat16: bool, way_out: str) -> Iterator[Ranks]:
    """All processes of this run, for as long as the body lasts.

    Args:
        device: that was asked for; on CUDA each process takes the GPU of its own number on this machine.
        sharded: whether weights, gradients and the optimiser's state are divided among the processes.
        bfloat16: whether weights that are divided are gathered in that type.
        way_out: how to go on where another process is gone.

    Raises:
        UsageError: no such device for all of them.
        RankFailedError: another process failed, or is gone.
    """
    if environment.count() == 1:
        yield OneProcess()
        return
    if name := environment.other_engine():
        raise UsageError(f"accelerate is set up for {name}; set it up for plain multi-GPU, and give --sharding full")
    _take_device(device)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group(_BACKENDS[device.type], timeout=_PATIENCE)
    ranks = _sharded(device.type, bfloat16) if sharded else Processes()
    with ranks.together(way_out):
        yield ranks
    if ours:  # after a failure the process ends, and so does its part in the group
        dist.destroy_process_group()


def _sharded(kind: str, bfloat16: bool) -> Processes:
    from opdlm.parallel.sharding import ShardedProcesses  # FSDP takes long to import

    return ShardedProcesses(kind, bfloat16)


def _take_device(device: torch.device) -> None:
    if device.type not in _BACKENDS or device.index is not None:
        raise UsageError(f"several processes do not share device {device}; leave out --device, or use cpu or cuda")
    if device.type == "cuda":
        here, there = environment.here(), torch.cuda.device_count()
        if here >= there:
            raise UsageError(f"there are {there} GPUs for process {here + 1} of this machine; start {there} processes")
        torch.cuda.set_device(here)
