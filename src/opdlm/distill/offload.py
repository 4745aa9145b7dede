"""AdamW whose two moments lie in the CPU's memory: on a GPU there are those of one parameter at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adamw import adamw

_MOMENTS = ("exp_avg", "exp_avg_sq")


class OffloadedAdamW(torch.optim.AdamW):
    """The same numbers as torch's AdamW; each step carries 16 bytes for each parameter over the bus."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Updates each parameter that has a gradient. `closure` is refused."""
        if closure is not None:
            raise ValueError("a step takes no closure; compute the gradients before it")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_of(parameter, parameter.grad, group)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the moments are back before anybody reads them

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would put all moments where the parameters are."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, saved in state_dict["state"].items():
            state = self._state_of(parameters[index])
            for name in ("step", *_MOMENTS):
                state[name].copy_(saved[name])

    def _step_of(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(parameter)
        first, second = (state[name].to(parameter.device, non_blocking=True) for name in _MOMENTS)
        beta1, beta2 = group["betas"]
        adamw(
            *([parameter], [gradient], [first], [second], [], [state["step"]]),
            foreach=False,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for name, moment in zip(_MOMENTS, (first, second), strict=True):
            state[name].copy_(moment, non_blocking=True)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            pinned = parameter.is_cuda  # else copies would wait for each other
            shape, kind = parameter.shape, parameter.dtype
            state["step"] = torch.tensor(0.0)
            state |= {name: torch.zeros(shape, dtype=kind, device="cpu", pin_memory=pinned) for name in _MOMENTS}
        return state
