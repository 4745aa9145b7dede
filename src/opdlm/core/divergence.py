"""Divergences between teacher and student over the vocabulary, and their sum over many rows in little memory.

Shape letters: M supervised positions, V vocabulary, K top-k, D hidden size. All values are in nats. Every divergence is
a function (teacher [M, V], student [M, V]) -> [M] of log-probabilities in float32.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn.functional import linear

from opdlm.core.types import LossSum

_NO_MASS = -1e30  # log of zero that stays finite: 0 * (-1e30) is 0, while 0 * (-inf) is not a number

LogDivergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def forward_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student): the paper's loss."""
    # In place, and with the sign outside: two [M, V] tensors less, here and in the backward pass.
    return -(student - teacher).mul_(teacher.exp()).sum(-1)


def reverse_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher)."""
    return forward_kl(student, teacher)


def mixed_kl(teacher: torch.Tensor, student: torch.Tensor, reverse_weight: float = 0.5) -> torch.Tensor:
    """(1 - w) KL(teacher || student) + w KL(student || teacher)."""
    return (1 - reverse_weight) * forward_kl(teacher, student) + reverse_weight * reverse_kl(teacher, student)


def generalised_jsd(teacher: torch.Tensor, student: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student (arXiv 2306.13649)."""
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * forward_kl(teacher, mixture) + (1 - beta) * forward_kl(student, mixture)


def total_variation(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Half the sum of absolute differences: the chance that a draft is refused (arXiv 2211.17192, Corollary 3.6).

    Between 0 and 1, without a unit.
    """
    return (teacher.exp() - student.exp()).abs().sum(-1) / 2


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
    head: Sequence[torch.Tensor],
    row_losses: Callable[[torch.Tensor, slice], torch.Tensor],
    chunk_rows: int = 1024,
) -> LossSum:
    """Sum of `weight * row_losses` over all rows, a chunk at a time: no [M, V] tensor outlives its chunk.

    The backward pass of a chunk runs right after its forward pass; only the gradients of `hidden` and `head` are kept
    (the idea of Liger Kernel's fused linear losses, arXiv 2410.10989). The head's is summed in float32, in one buffer.
    The backward pass of the result runs once.

    Args:
        hidden: [M, D] the student's hidden states at the predicting positions.
        weight: [M] float32 factor of each row.
        count: [] what the caller will divide by.
        head: the LM head's matrix [V, D] and, if it has one, its bias [V].
        row_losses: (the head's outputs [m, V], their slice of the M rows) -> [m] float32.
        chunk_rows: m; memory is about 4 * m * V floats.
    """
    total = _ChunkedSum.apply(hidden, weight, row_losses, chunk_rows, torch.is_grad_enabled(), *head)
    return LossSum(total, count)


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, row_losses, chunk_rows, want_gradient, *head):
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.zeros_like(hidden)
        gradients = [torch.zeros_like(p, dtype=torch.float32) if p.requires_grad else None for p in head]

        def outputs(piece: torch.Tensor) -> torch.Tensor:
            made = linear(piece, *(p.detach() for p in head))
            if want_gradient:
                made.register_hook(partial(_add_head_gradient, gradients, piece.detach()))
            return made

        for begin in range(0, hidden.shape[0], chunk_rows):
            part = slice(begin, min(begin + chunk_rows, hidden.shape[0]))
            with torch.set_grad_enabled(want_gradient):
                piece = hidden[part].detach().requires_grad_(want_gradient)
                loss = (row_losses(outputs(piece), part) * weight[part]).sum()
            total += loss.detach()
            if want_gradient:
                (hidden_gradient[part],) = torch.autograd.grad(loss, piece)
        # Not save_for_backward: the buffers themselves become the gradients, no copy of [V, D] is made.
        ctx.gradients, ctx.dtypes = [hidden_gradient, *gradients], [hidden.dtype, *(p.dtype for p in head)]
        return total

    @staticmethod
    def backward(ctx, *grad_outputs):
        (scale,) = grad_outputs
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [g if g is None else g.mul_(scale).to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return scaled[0], None, None, None, None, *scaled[1:]


def _add_head_gradient(gradients: Sequence[torch.Tensor | None], hidden: torch.Tensor, outputs: torch.Tensor) -> None:
    """Adds to the gradients of the head's matrix and bias what a chunk gives; `outputs`: [m, V] its gradient."""
    matrix, *bias = gradients
    if matrix is not None and matrix.dtype == outputs.dtype:
        matrix.addmm_(outputs.T, hidden)  # no [V, D] tensor besides the sum
    elif matrix is not None:
        matrix += outputs.T @ hidden.to(outputs.dtype)
    for gradient in bias:
        if gradient is not None:
            gradient += outputs.sum(0)
