"""A model as it is at one moment."""

import copy

from torch import nn

from opdlm.models.block_diffusion import BlockDiffusionModel


def snapshot(model: BlockDiffusionModel) -> BlockDiffusionModel:
    """What a thread may write while `model` trains on: what trains is copied into the CPU's memory, all else shared."""
    tensors = [*model.parameters(), *model.buffers()]
    copies = {id(one): nn.Parameter(one.detach().to("cpu", copy=True)) for one in tensors if one.requires_grad}
    return copy.deepcopy(model, {id(one): one for one in tensors} | copies)
