"""Several processes that share one copy of the weights: torch's FSDP2, a decoder layer at a time.

Each process holds a part of every weight, of its gradient and of the optimiser's state, in float32. A layer is gathered
for its forward and its backward pass. The embedding, the last norm and the LM head are gathered for a whole
micro-batch: the loss takes the LM head's matrix as it is, a chunk of positions at a time.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from opdlm.parallel.processes import Processes
from opdlm.parallel.tensors import whole_tensor

_Module = TypeVar("_Module", bound=nn.Module)

_PASSES = ("hidden", "causal_hidden")
"""The methods of a block-diffusion model that run its decoder."""


class ShardedProcesses(Processes):
    """The processes of torch's default group, each with its part of all weights."""

    def __init__(self, kind: str, bfloat16: bool) -> None:
        """`kind` of device; `bfloat16`: the type in which weights are gathered. Gradients are summed in float32."""
        super().__init__()
        self._mesh = init_device_mesh(kind, (self.count,))
        gathered = torch.bfloat16 if bfloat16 else None
        # Inputs stay as they are: autocast decides, as in one process.
        self._policy = MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False)
        self._outlines: dict[nn.Module, nn.Module] = {}

    def shard(self, *models: nn.Module) -> None:
        for model in models:
            if self.saves:
                self._outlines[model] = _outline(model)
            layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
            chain = [fully_shard(part, mesh=self._mesh, mp_policy=self._policy) for part in (*layers, model)]
            # Else FSDP would gather ahead what ran before, and of that rollouts leave another trace in each process.
            for before, part in zip([chain[-1], *chain], chain, strict=False):
                part.set_modules_to_backward_prefetch([before])
            for name in _PASSES:
                register_fsdp_forward_method(model, name)
            for part in _parts(model):
                part.set_force_sum_reduction_for_comms(True)  # gloo takes no mean
            self._first_pass(model)

    def _first_pass(self, model: nn.Module) -> None:
        """FSDP takes for the root what runs first; later passes may begin inside the model, in a view of it."""
        causal_hidden: Callable[[torch.Tensor], torch.Tensor] = getattr(model, "causal_hidden")  # noqa: B009
        with torch.no_grad():
            causal_hidden(torch.zeros(1, 1, dtype=torch.int64, device=self._mesh.device_type))
        for part in _parts(model):
            part.reshard()

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module  # what it calls in the student has hooks of its own

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()  # gradients are divided after every pass: whole ones would take the memory that is saved

    @contextmanager
    def whole(self, *models: nn.Module | None) -> Iterator[None]:
        roots = {id(model): model for model in models if model is not None}.values()
        parts = [(part, part is root) for root in roots for part in _parts(root)]
        for part, _ in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part, is_root in parts:
                part.set_reshard_after_forward(not is_root, recurse=False)
                part.reshard()

    @contextmanager
    def complete(self, model: _Module) -> Iterator[_Module]:
        for part in _parts(model):
            part.reshard()
        found = copy.deepcopy(self._outlines[model]) if self.saves else None
        for name, parameter in model.named_parameters():
            weight = whole_tensor(parameter.detach())
            if found is not None:
                empty = found.get_parameter(name)  # of tied ones too: they are one parameter
                torch.utils.swap_tensors(empty, nn.Parameter(weight.cpu(), parameter.requires_grad))
        yield model if found is None else found  # type: ignore[misc]

    def gathered_state(self, state: Any) -> Any:
        if isinstance(state, dict):
            return {name: self.gathered_state(value) for name, value in state.items()}
        if isinstance(state, list):
            return [self.gathered_state(value) for value in state]
        if not isinstance(state, DTensor):
            return state
        gathered = state.full_tensor()
        return gathered.cpu() if self.saves else None

    def own_state(self, state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
        optimiser = state["optimiser"]
        own = {
            index: {name: _part_of(value, parameters[index]) for name, value in values.items()}
            for index, values in optimiser["state"].items()
        }
        return {**state, "optimiser": {**optimiser, "state": own}}


def _parts(model: nn.Module) -> list[FSDPModule]:
    """Its decoder layers, and the model itself with all the rest."""
    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def _outline(model: _Module) -> _Module:
    """A copy without weights."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def _part_of(value: Any, parameter: nn.Parameter) -> Any:
    """This process's part of what belongs to each entry of a parameter; anything else as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
