"""What several processes share: sums over all of them, and who writes files. One process is the case of today.

A trainer asks its `Ranks` wherever a number must be that of the whole update, and wherever only one may act. So a
second process needs an implementation of this protocol and no other change.
"""

from typing import Protocol, TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


class Ranks(Protocol):
    """All processes of a run."""

    @property
    def saves(self) -> bool:
        """Whether this process writes metrics, rollouts and checkpoints."""
        ...

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes; every process calls it at the same places."""
        ...

    def wrapped(self, module: _Module) -> _Module:
        """The module whose `forward` is called in training: what must see it (DDP, FSDP) is around it."""
        ...


class OneProcess:
    """No others."""

    saves = True

    def sum(self, *values: float) -> list[float]:
        return list(values)

    def wrapped(self, module: _Module) -> _Module:
        return module
