"""Where a model runs."""

import torch

from opdlm.errors import UsageError


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes a GPU if there is one. Raises UsageError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; use cpu, cuda, cuda:N, mps or auto") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise UsageError(f"device {name!r} is not available on this machine; use --device cpu or auto")
    return device
