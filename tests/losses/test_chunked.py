"""The kernel against a naive float64 oracle: values, gradients, and what must not change them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raystill.errors import ConfigError
from raystill.losses.chunked import choose_chunk_rows, chunked_loss
from raystill.losses.loss import Loss
from raystill.losses.terms import LossTerms
from raystill.losses.teachers import TopKTeacher

N, D, V, K = 13, 8, 29, 5
TERMS = [
    LossTerms(),
    LossTerms(ce_weight=0.3, kl_weight=0.7),
    LossTerms(ce_weight=0.0, kl_weight=1.0, kd_temperature=2.5),
    LossTerms(ce_weight=0.2, kl_weight=0.8, divergence="reverse_kl"),
    LossTerms(ce_weight=0.0, kl_weight=1.5, divergence="reverse_kl", kd_temperature=0.7),
]


def make_teacher(logits_NV: Tensor, k: int) -> TopKTeacher:
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    top = logprobs_NV.topk(k, dim=-1)
    rest_NV = logprobs_NV.scatter(1, top.indices, -torch.inf)
    return TopKTeacher(top.indices, top.values, torch.logsumexp(rest_NV, -1))


def make_problem(
    seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor, TopKTeacher]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, weight, bias = normal(N, D), normal(V, D), normal(V)
    targets = torch.randint(V, (N,), generator=generator)
    return hidden, weight, bias, targets, make_teacher(3 * normal(N, V), K)


def naive_loss(logits_NV: Tensor, targets: Tensor, teacher: TopKTeacher, terms: LossTerms) -> Tensor:
    """Straight from the definitions: probabilities, sums and logs, row by row."""
    total = logits_NV.new_zeros(())
    for row in range(logits_NV.shape[0]):
        p = torch.softmax(logits_NV[row], -1)
        total = total - terms.ce_weight * p[targets[row]].log()
        if terms.kl_weight == 0:
            continue
        ids = teacher.ids_NK[row]
        others = torch.ones_like(p, dtype=torch.bool)
        others[ids] = False
        student = torch.cat([p[ids], p[others].sum().reshape(1)])
        taught = torch.cat([teacher.logprobs_NK[row].exp(), teacher.tail_logprob_N[row].exp().reshape(1)])
        T = terms.kd_temperature
        s = student ** (1 / T) / (student ** (1 / T)).sum()
        t = taught ** (1 / T) / (taught ** (1 / T)).sum()
        kl = (t * (t / s).log()).sum() if terms.divergence == "forward_kl" else (s * (s / t).log()).sum()
        total = total + terms.kl_weight * T * T * kl
    return total


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_equals_the_naive_loss_and_its_gradients(terms: LossTerms, chunk_rows: int) -> None:
    hidden, weight, bias, targets, teacher = make_problem()
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    expected = naive_loss(hidden @ weight.T + bias, targets, teacher, terms)
    expected_gradients = torch.autograd.grad(expected, leaves)
    loss = chunked_loss(hidden, weight, targets, terms, teacher=teacher, bias_V=bias, chunk_rows=chunk_rows)
    gradients = torch.autograd.grad(loss.sum, leaves)
    torch.testing.assert_close(loss.sum, expected, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
        assert gradient.abs().max() > 0
    assert loss.num_tokens == N
    assert loss.sum.requires_grad and not any(value.requires_grad for value in loss.metrics.values())


@pytest.mark.parametrize("terms", TERMS)
def test_gradcheck(terms: LossTerms) -> None:
    hidden, weight, bias, targets, teacher = make_problem(seed=1)

    def loss(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
        return chunked_loss(
            hidden_ND, weight_VD, targets, terms, teacher=teacher, bias_V=bias_V, chunk_rows=5
        ).sum

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in (hidden, weight, bias)])


@pytest.mark.parametrize("terms", TERMS)
def test_float32_is_close_to_float64(terms: LossTerms) -> None:
    exact = make_problem()
    expected = naive_loss(exact[0] @ exact[1].T, exact[3], exact[4], terms)
    hidden, weight, _, targets, teacher = make_problem(dtype=torch.float32)
    loss = chunked_loss(hidden, weight, targets, terms, teacher=teacher)
    torch.testing.assert_close(loss.sum.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_hidden_gets_the_same() -> None:
    hidden, weight, _, targets, teacher = make_problem()
    hidden.requires_grad_()
    (frozen,) = torch.autograd.grad(
        chunked_loss(hidden, weight, targets, TERMS[1], teacher=teacher).sum, [hidden]
    )
    weight.requires_grad_()
    trained, weight_gradient = torch.autograd.grad(
        chunked_loss(hidden, weight, targets, TERMS[1], teacher=teacher).sum, [hidden, weight]
    )
    assert torch.equal(frozen, trained)
    assert weight_gradient.abs().max() > 0


def test_no_grad_gives_the_same_value() -> None:
    hidden, weight, _, targets, teacher = make_problem()
    with_grad = chunked_loss(hidden.requires_grad_(), weight, targets, TERMS[1], teacher=teacher).sum
    with torch.no_grad():
        without = chunked_loss(hidden, weight, targets, TERMS[1], teacher=teacher).sum
    assert torch.equal(with_grad.detach(), without) and not without.requires_grad


def test_kl_weight_zero_is_cross_entropy_bit_for_bit() -> None:
    hidden, weight, _, targets, teacher = make_problem(dtype=torch.float32)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    plain = chunked_loss(hidden, weight, targets, LossTerms())
    kd = chunked_loss(hidden, weight, targets, LossTerms(ce_weight=1.0, kl_weight=0.0), teacher=teacher)
    assert torch.equal(plain.sum, kd.sum)
    for one, other in zip(
        torch.autograd.grad(plain.sum, leaves), torch.autograd.grad(kd.sum, leaves), strict=True
    ):
        assert torch.equal(one, other)


def test_cross_entropy_equals_torch() -> None:
    hidden, weight, _, targets, _ = make_problem(dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(chunked_loss(hidden, weight, targets, LossTerms()).sum, expected)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=0, max_size=4), st.integers(1, 20))
def test_any_split_into_micro_batches_and_chunks_gives_the_same_gradient(cuts: list[int], rows: int) -> None:
    hidden, weight, _, targets, teacher = make_problem()
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    terms = TERMS[1]
    whole = torch.autograd.grad(chunked_loss(hidden, weight, targets, terms, teacher=teacher).sum, leaves)
    edges = sorted({0, N, *cuts})
    parts = [
        chunked_loss(
            hidden[a:b], weight, targets[a:b], terms, teacher=teacher.rows(a, b), chunk_rows=rows
        ).sum
        for a, b in itertools.pairwise(edges)
    ]
    for gradient, wanted in zip(torch.autograd.grad(sum(parts), leaves), whole, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


def test_the_upstream_gradient_scales_every_gradient() -> None:
    hidden, weight, bias, targets, _ = make_problem()
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    one = torch.autograd.grad(chunked_loss(hidden, weight, targets, LossTerms(), bias_V=bias).sum, leaves)
    third = torch.autograd.grad(
        chunked_loss(hidden, weight, targets, LossTerms(), bias_V=bias).sum / 3, leaves
    )
    for a, b in zip(one, third, strict=True):
        torch.testing.assert_close(a / 3, b)


def test_absent_entries_are_no_outcomes() -> None:
    """Padding a teacher from K to K + 2 entries with -inf changes nothing, whatever ids stand there."""
    hidden, weight, _, targets, teacher = make_problem()
    hidden.requires_grad_()
    padded = TopKTeacher(
        torch.cat([teacher.ids_NK, teacher.ids_NK[:, :1], teacher.ids_NK[:, 1:2]], dim=1),
        torch.cat([teacher.logprobs_NK, torch.full((N, 2), -torch.inf, dtype=torch.float64)], dim=1),
        teacher.tail_logprob_N,
    )
    for terms in TERMS[1:]:
        one = chunked_loss(hidden, weight, targets, terms, teacher=teacher).sum
        other = chunked_loss(hidden, weight, targets, terms, teacher=padded).sum
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(*(torch.autograd.grad(x, hidden)[0] for x in (one, other)))


def test_bfloat16_autocast_keeps_float32_gradients_of_the_head() -> None:
    hidden, weight, _, targets, teacher = make_problem(dtype=torch.float32)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    exact = torch.autograd.grad(chunked_loss(hidden, weight, targets, TERMS[1], teacher=teacher).sum, leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss: Loss = chunked_loss(hidden, weight, targets, TERMS[1], teacher=teacher, chunk_rows=3)
    rounded = torch.autograd.grad(loss.sum, leaves)
    assert loss.sum.dtype == torch.float32 and rounded[1].dtype == torch.float32
    for a, b in zip(exact, rounded, strict=True):
        assert (a - b).norm() < 0.03 * a.norm()


def test_a_divergence_without_its_teacher_is_an_error() -> None:
    hidden, weight, _, targets, _ = make_problem()
    with pytest.raises(ValueError, match="teacher"):
        chunked_loss(hidden, weight, targets, TERMS[1])


@pytest.mark.parametrize(
    "change", [{"kl_weight": 0.0, "ce_weight": 0.0}, {"kl_weight": -1.0}, {"kd_temperature": 0.0}]
)
def test_terms_that_train_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(LossTerms(), **change)  # type: ignore[arg-type]


def test_chunks_shrink_with_the_vocabulary() -> None:
    assert choose_chunk_rows(768, "cpu") == 4096
    assert choose_chunk_rows(151_936, "cpu") == 32
    assert choose_chunk_rows(151_936, "cuda") > 800
