"""The KL family against torch's own, and its sum in chunks against the sum at once."""

from functools import partial

import pytest
import torch
from torch.nn.functional import kl_div

from opdlm.core import divergence as div

ROWS, VOCABULARY, WIDTH = 7, 11, 5


def random_pair(seed: int = 0, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, rows, VOCABULARY, generator=generator) * 2
    teacher[:, -1] = student[:, -1] = -1e30  # the mask token
    return teacher.log_softmax(-1), student.log_softmax(-1)


def torch_kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first || second) of each row."""
    return kl_div(second, first, log_target=True, reduction="none").sum(-1)


def torch_jsd(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    mixture = (beta * teacher.exp() + (1 - beta) * student.exp()).clamp(min=1e-38).log()
    return beta * torch_kl(teacher, mixture) + (1 - beta) * torch_kl(student, mixture)


def test_each_divergence_is_its_definition() -> None:
    """Else a direction or a weight would be swapped: reverse KL seeks modes, forward KL covers them."""
    teacher, student = random_pair()
    forward, reverse = torch_kl(teacher, student), torch_kl(student, teacher)
    torch.testing.assert_close(div.forward_kl(teacher, student), forward)
    torch.testing.assert_close(div.reverse_kl(teacher, student), reverse)
    torch.testing.assert_close(div.mixed_kl(teacher, student, 0.3), 0.7 * forward + 0.3 * reverse)
    for beta in (0.5, 0.1, 0.9):
        expected = torch_jsd(teacher, student, beta)
        torch.testing.assert_close(div.generalised_jsd(teacher, student, beta), expected)
    # Towards the ends the JSD is the KL of one side, scaled (arXiv 2306.13649).
    torch.testing.assert_close(div.generalised_jsd(teacher, student, 1e-4) / 1e-4, forward, atol=0.02, rtol=0.02)


ALL = {
    "forward": div.forward_kl,
    "reverse": div.reverse_kl,
    "mixed": div.mixed_kl,
    "jsd": partial(div.generalised_jsd, beta=0.3),
}


@pytest.mark.parametrize("name", ALL)
def test_equal_models_have_none_and_no_gradient(name: str) -> None:
    """Else training would push a perfect student away, or the mask token's entry would make a NaN."""
    teacher, student = random_pair()
    assert (ALL[name](teacher, student) > 0).all()
    logits = teacher.clone().requires_grad_()
    loss = ALL[name](teacher, logits.log_softmax(-1))
    torch.testing.assert_close(loss, torch.zeros(ROWS), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(name: str) -> None:
    """Else top-k would be another loss, not a cheaper one; the empty rest must not make a NaN."""
    teacher, student = random_pair()
    student.requires_grad_()
    full = ALL[name](teacher, student)
    for k in (VOCABULARY, VOCABULARY + 5):
        for rest in (True, False):
            restricted = div.on_top_k(ALL[name], k, rest)(teacher, student)
            torch.testing.assert_close(restricted, full)
            gradients = [torch.autograd.grad(loss.sum(), student, retain_graph=True)[0] for loss in (full, restricted)]
            torch.testing.assert_close(gradients[1][:, :-1], gradients[0][:, :-1])


def test_the_rest_bucket_keeps_it_a_divergence() -> None:
    """Else the student could win by giving its mass to tokens outside the top-k: the published partial sum."""
    teacher, student = random_pair(rows=200)
    full = div.forward_kl(teacher, student)
    with_rest = div.on_top_k(div.forward_kl, 3)(teacher, student)
    assert (with_rest >= 0).all()
    assert (with_rest <= full + 1e-5).all(), "joining outcomes never adds divergence"
    index = teacher.topk(3).indices
    top = [
        torch.cat([p.exp().gather(1, index), 1 - p.exp().gather(1, index).sum(1, True)], 1) for p in (teacher, student)
    ]
    torch.testing.assert_close(with_rest, torch_kl(top[0].log(), top[1].log()), atol=1e-4, rtol=1e-4)


def test_the_published_partial_sum_can_be_negative() -> None:
    """Else nobody would notice if `rest_bucket = false` were quietly renormalised: then it is not the published loss.

    Teacher (0.4, 0.3, 0.3), student (0.6, 0.2, 0.2), k = 1: 0.4 log(0.4 / 0.6) = -0.162.
    """
    teacher, student = torch.tensor([[0.4, 0.3, 0.3]]).log(), torch.tensor([[0.6, 0.2, 0.2]]).log()
    partial_sum = div.on_top_k(div.forward_kl, 1, rest_bucket=False)(teacher, student)
    torch.testing.assert_close(partial_sum, torch.tensor([-0.16219]), atol=1e-5, rtol=0)
    assert div.on_top_k(div.forward_kl, 1)(teacher, student) > 0


# --- in chunks ----------------------------------------------------------------------------------------------------


def parts(dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Parameter, torch.nn.Parameter, torch.Tensor]:
    """The embedding that makes hidden states, the head, and the rows' weights."""
    generator = torch.Generator().manual_seed(1)
    embedding = torch.nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype))
    head = torch.nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype))
    return embedding, head, torch.rand(ROWS, generator=generator) + 0.5


def loss_and_gradients(
    chunk: int | None, tied: bool, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """chunk None: without chunked_sum."""
    embedding, head, weight = parts(dtype)
    used = embedding if tied else head
    teacher, _ = random_pair()
    hidden = torch.tanh(embedding[:ROWS])  # a tied head gets a gradient from both sides

    def row_losses(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        return div.forward_kl(teacher[part], outputs.float().log_softmax(-1))

    if chunk is None:
        total = (row_losses(hidden @ used.T, slice(None)) * weight).sum()
    else:
        total = div.chunked_sum(hidden, weight, torch.tensor(3.0), [used], row_losses, chunk).total
    (total / 7).backward()
    return total.detach(), [p.grad for p in ([embedding] if tied else [embedding, head])]  # type: ignore[misc]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, ROWS, 1000])
def test_chunked_is_full(chunk: int, tied: bool) -> None:
    """Else saving memory would change the value, or the gradient of the hidden states or of the head."""
    expected, expected_gradients = loss_and_gradients(None, tied)
    total, gradients = loss_and_gradients(chunk, tied)
    torch.testing.assert_close(total, expected)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted)


def test_chunked_keeps_dtypes_and_sums_in_float32() -> None:
    """Else bfloat16 training would get float32 gradients, or lose small chunks in a bfloat16 sum."""
    expected, wanted = loss_and_gradients(None, tied=False, dtype=torch.bfloat16)
    total, gradients = loss_and_gradients(2, tied=False, dtype=torch.bfloat16)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected)
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)


def test_chunked_without_gradients_or_rows() -> None:
    """Else evaluating a loss, a frozen head (LoRA), or a batch without supervised positions would fail."""
    embedding, head, weight = parts()
    teacher, _ = random_pair()

    def row_losses(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        return div.forward_kl(teacher[part], outputs.log_softmax(-1))

    with torch.no_grad():
        quiet = div.chunked_sum(embedding[:ROWS], weight, torch.tensor(7.0), [head], row_losses, 2)
    assert not quiet.total.requires_grad
    assert quiet.count == 7
    frozen = head.detach()
    div.chunked_sum(embedding[:ROWS], weight, torch.tensor(7.0), [frozen], row_losses, 2).total.backward()
    assert embedding.grad is not None
    nothing = div.chunked_sum(embedding[:0], weight[:0], torch.tensor(0.0), [frozen], row_losses, 2)
    nothing.total.backward()
    assert nothing.total == 0
