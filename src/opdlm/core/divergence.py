"""Divergences between teacher and student over the vocabulary, and their sum over many rows in little memory.

Shape letters: M supervised positions, V vocabulary, K top-k, D hidden size. All values are in nats. Every divergence is
a function (teacher [M, V], student [M, V]) -> [M] of log-probabilities in float32.
"""

import math
from collections.abc import Callable, Sequence

import torch

from opdlm.core.types import LossSum

_NO_MASS = -1e30  # log of zero that stays finite: 0 * (-1e30) is 0, while 0 * (-inf) is not a number

LogDivergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def forward_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student): the paper's loss."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher)."""
    return (student.exp() * (student - teacher)).sum(-1)


def mixed_kl(teacher: torch.Tensor, student: torch.Tensor, reverse_weight: float = 0.5) -> torch.Tensor:
    """(1 - w) KL(teacher || student) + w KL(student || teacher)."""
    return (1 - reverse_weight) * forward_kl(teacher, student) + reverse_weight * reverse_kl(teacher, student)


def generalised_jsd(teacher: torch.Tensor, student: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student (arXiv 2306.13649)."""
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * forward_kl(teacher, mixture) + (1 - beta) * forward_kl(student, mixture)


def on_top_k(divergence: LogDivergence, k: int, rest_bucket: bool = True) -> LogDivergence:
    """The same divergence over the teacher's `k` most probable tokens.

    With `rest_bucket` the mass of all other tokens is one more outcome, so that the result is still a divergence (zero
    only where both agree on the k tokens, never negative). Without it, the sum is the published partial one: the mass
    outside is left out, and the value can be negative.
    """

    def restricted(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        index = teacher.topk(min(k, teacher.shape[-1]), dim=-1).indices
        pairs = [log.gather(-1, index) for log in (teacher, student)]
        if rest_bucket:
            rests = [log.scatter(-1, index, _NO_MASS).logsumexp(-1, keepdim=True) for log in (teacher, student)]
            pairs = [torch.cat(pair, -1) for pair in zip(pairs, rests, strict=True)]
        return divergence(*pairs)

    return restricted


def chunked_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    count: torch.Tensor,
    row_losses: Callable[[torch.Tensor, slice], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    chunk_rows: int = 1024,
) -> LossSum:
    """Sum of `weight * row_losses` over all rows, a chunk at a time: no [M, V] tensor outlives its chunk.

    The backward pass of a chunk runs right after its forward pass; only the gradients of `hidden` and `parameters`
    are kept (the idea of Liger Kernel's fused linear losses, arXiv 2410.10989).

    Args:
        hidden: [M, D] the student's hidden states at the predicting positions.
        weight: [M] float32 factor of each row.
        count: [] what the caller will divide by.
        row_losses: (hidden [m, D], its slice of the M rows) -> [m] float32; applies the LM head and the divergence.
        parameters: tensors inside `row_losses` that need a gradient (the LM head's).
        chunk_rows: m; memory is about 4 * m * V floats.
    """
    needing = [p for p in parameters if p.requires_grad]
    total = _ChunkedSum.apply(hidden, weight, row_losses, chunk_rows, torch.is_grad_enabled(), *needing)
    return LossSum(total, count)


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, row_losses, chunk_rows, want_gradient, *parameters):
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.zeros_like(hidden)
        gradients = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for begin in range(0, hidden.shape[0], chunk_rows):
            part = slice(begin, min(begin + chunk_rows, hidden.shape[0]))
            with torch.set_grad_enabled(want_gradient):
                piece = hidden[part].detach().requires_grad_(want_gradient)
                loss = (row_losses(piece, part) * weight[part]).sum()
            total += loss.detach()
            if want_gradient:
                found = torch.autograd.grad(loss, [piece, *parameters])
                hidden_gradient[part] = found[0]
                for gradient, addition in zip(gradients, found[1:], strict=True):
                    gradient += addition
        ctx.save_for_backward(hidden_gradient, *gradients)
        ctx.dtypes = [p.dtype for p in parameters]
        return total

    @staticmethod
    def backward(ctx, *grad_outputs):
        (scale,) = grad_outputs
        hidden_gradient, *gradients = ctx.saved_tensors
        scaled = [(g * scale).to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return hidden_gradient * scale, None, None, None, None, *scaled
