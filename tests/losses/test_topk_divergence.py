"""What coarse-graining promises: bounds, identities, and stability at both ends of the tail."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raystill.losses.chunked import chunked_loss
from raystill.losses.teachers import TopKTeacher
from raystill.losses.terms import Divergence, LossTerms
from raystill.losses.topk_divergence import coarsen_, compute_topk_divergence

V = 17
BOTH: list[Divergence] = ["forward_kl", "reverse_kl"]


def make_teacher(logits_NV: Tensor, k: int) -> TopKTeacher:
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    top = logprobs_NV.topk(k, dim=-1)
    rest_NV = logprobs_NV.scatter(1, top.indices, -torch.inf)
    return TopKTeacher(top.indices, top.values, torch.logsumexp(rest_NV, -1))


def dense_divergence(
    teacher_NV: Tensor, student_NV: Tensor, divergence: Divergence, T: float = 1.0
) -> Tensor:
    t, s = torch.log_softmax(teacher_NV / T, -1), torch.log_softmax(student_NV / T, -1)
    if divergence == "forward_kl":
        return T * T * (t.exp() * (t - s)).sum(-1)
    return T * T * (s.exp() * (s - t)).sum(-1)


@pytest.mark.parametrize("divergence", BOTH)
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, V), st.floats(0.1, 6.0))
def test_coarse_divergence_never_exceeds_the_dense_one(
    divergence: Divergence, seed: int, k: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = scale * torch.randn(2, 4, V, generator=generator, dtype=torch.float64)
    coarse = compute_topk_divergence(student, make_teacher(teacher, k), divergence)
    assert (coarse >= -1e-12).all()
    assert (coarse <= dense_divergence(teacher, student, divergence) + 1e-9).all()


@pytest.mark.parametrize("divergence", BOTH)
@pytest.mark.parametrize("T", [0.5, 1.0, 2.0, 7.0])
def test_with_every_token_stored_it_is_dense_tempered_distillation(divergence: Divergence, T: float) -> None:
    generator = torch.Generator().manual_seed(3)
    teacher, student = 2 * torch.randn(2, 6, V, generator=generator, dtype=torch.float64)
    full = make_teacher(teacher, V)
    assert torch.isneginf(full.tail_logprob_N).all()
    torch.testing.assert_close(
        compute_topk_divergence(student, full, divergence, T),
        dense_divergence(teacher, student, divergence, T),
    )


@pytest.mark.parametrize("divergence", BOTH)
@pytest.mark.parametrize("T", [1.0, 3.0])
@pytest.mark.parametrize("k", [1, 5, V])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    divergence: Divergence, T: float, k: int
) -> None:
    hidden = torch.eye(V, dtype=torch.float64)[:4]
    weight = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weight.requires_grad_()
    teacher = make_teacher((hidden @ weight.T).detach(), k)
    terms = LossTerms(ce_weight=0.0, kl_weight=1.0, divergence=divergence, kd_temperature=T)
    loss = chunked_loss(hidden, weight, torch.zeros(4, dtype=torch.int64), terms, teacher=teacher)
    (gradient,) = torch.autograd.grad(loss.sum, weight)
    assert abs(loss.sum.item()) < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("divergence", BOTH)
def test_t_squared_keeps_the_gradient_from_vanishing(divergence: Divergence) -> None:
    """As T grows, T^2 * KL(T) tends to the variance form (Hinton et al. 2015): bounded, not 1/T^2."""
    generator = torch.Generator().manual_seed(7)
    teacher, student = torch.randn(2, 3, V, generator=generator, dtype=torch.float64)
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = difference.square().sum(-1) / (2 * V)
    value = compute_topk_divergence(student, make_teacher(teacher, V), divergence, 1e4)
    torch.testing.assert_close(value, limit, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gap", [-40.0, 40.0, 120.0])
def test_the_tail_is_exact_in_float32_when_it_is_everything_or_almost_nothing(gap: float) -> None:
    """One stored token `gap` nats above (or below) a flat rest: 1 - p would lose the smaller side."""
    logits = torch.zeros(1, V)
    logits[0, 2] = gap
    ids = torch.tensor([[2]])
    coarse = coarsen_(logits.clone(), TopKTeacher(ids, torch.zeros(1, 1), torch.zeros(1)))
    log_s = torch.log_softmax(coarse.logits_NJ, -1)[0].double()
    normaliser = gap + math.log1p((V - 1) * math.exp(-gap)) if gap > 0 else math.log(V - 1 + math.exp(gap))
    torch.testing.assert_close(log_s[0].item(), gap - normaliser, rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(log_s[1].item(), math.log(V - 1) - normaliser, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("divergence", BOTH)
@pytest.mark.parametrize("gap", [-200.0, 0.0, 200.0])
def test_gradients_stay_finite_at_the_extremes_in_float32(divergence: Divergence, gap: float) -> None:
    weight = torch.zeros(V, 1)
    weight[2] = gap
    weight.requires_grad_()
    teacher = TopKTeacher(torch.tensor([[2, 3]]), torch.tensor([[-0.0, -60.0]]), torch.tensor([-torch.inf]))
    terms = LossTerms(ce_weight=0.5, kl_weight=0.5, divergence=divergence)
    loss = chunked_loss(torch.ones(1, 1), weight, torch.tensor([3]), terms, teacher=teacher)
    (gradient,) = torch.autograd.grad(loss.sum, weight)
    assert torch.isfinite(loss.sum) and torch.isfinite(gradient).all()


def test_measuring_leaves_its_logits_alone() -> None:
    logits = torch.randn(3, V)
    before = logits.clone()
    compute_topk_divergence(logits, make_teacher(torch.randn(3, V), 4))
    assert torch.equal(logits, before)
