"""What the processes of a run share: sums over all of them, who writes files, and who holds which weights.

A trainer asks its `Ranks` wherever a number must be that of the whole update, wherever only one may act, and wherever
a model must be whole. `OneProcess` answers for a run without a launcher; `processes.py` and `sharding.py` for several,
which `launch.py` finds.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from torch import nn

_T = TypeVar("_T")
_Module = TypeVar("_Module", bound=nn.Module)


class Ranks(Protocol):
    """All processes of a run. What is said to be for all, every process calls at the same places."""

    number: int
    """Of this process, from 0."""
    count: int
    """Of all processes."""

    @property
    def saves(self) -> bool:
        """Whether this process writes metrics, rollouts and checkpoints."""
        ...

    @property
    def share(self) -> slice:
        """This process's part of what is dealt out, as an index: every `count`-th from the `number`-th on."""
        ...

    # --- for all: words -----------------------------------------------------------------------------------------

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes. Raises KeyboardInterrupt in all of them if one was interrupted."""
        ...

    def gathered(self, mine: _T) -> list[_T]:
        """What each process has of something that pickle takes (tensors on the CPU), by their numbers."""
        ...

    def agreed(self) -> AbstractContextManager[None]:
        """Around what asks nothing of the others. Where it fails or is interrupted in one process, it does in all.

        Raises RankFailedError where the failure is another's.
        """
        ...

    def by_one(self, work: Callable[[], _T]) -> _T:
        """What the process that saves does alone; all get the result, and its failures as in `agreed`."""
        ...

    # --- for all: weights ---------------------------------------------------------------------------------------

    def shard(self, *models: nn.Module) -> None:
        """Divide their weights among the processes, where they are to be divided; once, before they are used."""
        ...

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module to be called in training: gradients become their mean over all processes."""
        ...

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around a forward and a backward pass of what `wrapped` returned; `last`: of the update."""
        ...

    def whole(self, *models: nn.Module | None) -> AbstractContextManager[None]:
        """While it lasts, every process holds all weights of the `models`, and their passes ask nothing of others."""
        ...

    def complete(self, model: _Module) -> AbstractContextManager[_Module]:
        """To be saved: in the process that saves, the model with all its weights as they are trained."""
        ...

    def gathered_state(self, state: Any) -> Any:
        """To be saved: in the process that saves, `state` with whole tensors."""
        ...

    def own_state(self, state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
        """An optimiser's state from a checkpoint, as much of it as this process holds of `parameters`."""
        ...


class OneProcess:
    """No others."""

    number, count, saves = 0, 1, True

    @property
    def share(self) -> slice:
        return slice(self.number, None, self.count)

    def sum(self, *values: float) -> list[float]:
        return list(values)

    def gathered(self, mine: _T) -> list[_T]:
        return [mine]

    def agreed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def by_one(self, work: Callable[[], _T]) -> _T:
        return work()

    def shard(self, *models: nn.Module) -> None:
        """Nothing to divide."""

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def whole(self, *models: nn.Module | None) -> AbstractContextManager[None]:
        return nullcontext()

    def complete(self, model: _Module) -> AbstractContextManager[_Module]:
        return nullcontext(model)

    def gathered_state(self, state: Any) -> Any:
        return state

    def own_state(self, state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
        return state
