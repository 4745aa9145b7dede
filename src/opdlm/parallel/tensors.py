"""Tensors of which each process holds a part."""

import torch


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of it, asked of the other processes where they hold parts (then all must ask); else the tensor itself."""
    gather = getattr(tensor, "full_tensor", None)  # of a DTensor, whose module takes long to import
    return tensor if gather is None else gather()
