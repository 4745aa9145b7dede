"""Tells one set of weights from another in a moment."""

import hashlib

from torch import nn

_MOST = 1024  # numbers of one tensor


def sampled_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes and some numbers of all parameters, as float32.

    A training moves all numbers of a tensor, so that a few show it. For proof take `weights_hash`, which reads all.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        plain = parameter.to_dense() if parameter.is_mkldnn else parameter  # packed for a CPU
        numbers = plain.detach().flatten()
        step = len(numbers) // _MOST | 1  # odd, so that no column of a matrix is sampled alone
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(numbers[::step].float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
