"""The optimiser with its schedule: one update, refused if the loss or what it makes of the weights is not finite."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from opdlm.config import OptimiserSettings
from opdlm.core.schedules import learning_rate
from opdlm.distill.offload import OffloadedAdamW
from opdlm.errors import NonFiniteLossError, NonFiniteWeightsError
from opdlm.models.finite import all_finite
from opdlm.models.low_bits import bitsandbytes
from opdlm.parallel.tensors import whole_tensor


class Updater:
    """AdamW over the parameters that train, with an optional L2-SP term.

    L2-SP (arXiv 1802.01483) is a weight decay towards the original weights in place of zero: each update takes back
    `rate * l2_sp` of the distance. It kept more of what no prompt asks for (docs/log.md).
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        settings: OptimiserSettings,
        updates: int,
        originals: Sequence[torch.Tensor] = (),
    ) -> None:
        """`updates`: the planned number, which shapes the rate's decay. `originals`: for L2-SP, one a parameter."""
        pairs = zip(parameters, originals, strict=True) if settings.l2_sp else ()
        self.originals = [original for p, original in pairs if p.requires_grad]
        self.parameters = [p for p in parameters if p.requires_grad]
        self.settings, self.planned, self.done = settings, updates, 0
        self.rate_used = 0.0  # of the last update
        self.way_out: Callable[[], str] = lambda: "start again with a lower learning rate"
        self.optimiser = _adamw(self.parameters, settings)

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        s = self.settings
        return learning_rate(self.done, self.planned, s.learning_rate, s.final_learning_rate, s.warmup_updates)

    def update(self, loss: float, rows: Sequence[int]) -> float:
        """Apply the gradients; returns their norm before clipping.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite; the weights are as they were before.
            NonFiniteWeightsError: a weight is not finite after the update.
        """
        norm = float(whole_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimiser.zero_grad()
            raise NonFiniteLossError(
                f"loss {loss} with gradient norm {norm} at update {self.done}, rows {list(rows)} of the rollout; "
                f"{self.way_out()}"
            )
        self.rate_used = self.rate
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate_used
        self.optimiser.step()
        if self.originals:
            with torch.no_grad():
                for parameter, original in zip(self.parameters, self.originals, strict=True):
                    parameter.lerp_(original, self.rate_used * self.settings.l2_sp)
        if not all_finite(self.parameters):
            raise NonFiniteWeightsError(f"weights are not finite after update {self.done}; {self.way_out()}")
        torch.clear_autocast_cache()  # else autocast would go on with its bfloat16 copies of the weights as they were
        self.optimiser.zero_grad()
        self.done += 1
        return norm

    def state(self) -> dict:
        """What a resumed run needs to go on bit by bit."""
        return {"optimiser": self.optimiser.state_dict(), "done": self.done, "rate_used": self.rate_used}

    def restore(self, state: dict) -> None:
        """Continue from `state`."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.rate_used = state["done"], state.get("rate_used", 0.0)  # earlier versions kept no rate


def _adamw(parameters: Sequence[torch.nn.Parameter], settings: OptimiserSettings) -> torch.optim.Optimizer:
    shared: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "weight_decay": settings.weight_decay,
    }
    if settings.moments == "8bit":
        return bitsandbytes().optim.AdamW8bit(parameters, **shared)
    if settings.moments == "offload":
        return OffloadedAdamW(parameters, **shared)
    # Fused: on a GPU the usual form holds another set of all weights while it steps.
    fused = True if parameters and parameters[0].is_cuda else None
    return torch.optim.AdamW(parameters, **shared, fused=fused)
