"""The kernel against a naive float64 oracle: values, gradients, and what must not change them."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import cast, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raystill.errors import ConfigError
from raystill.losses.chunked import choose_chunk_rows, chunked_loss
from raystill.losses.loss import Loss
from raystill.losses.teachers import DenseTeacher, MixedTeacher, SampledTeacher, Teacher, TopKTeacher
from raystill.losses.terms import (
    DIVERGENCES,
    Divergence,
    EntropyDriven,
    LossTerms,
    Signal,
    Tail,
    refuse_combination,
)

N, D, V, K, U = 13, 8, 29, 5, 7
TERMS = [
    LossTerms(),
    LossTerms(ce_weight=0.3, kl_weight=0.7),
    LossTerms(ce_weight=0.0, kl_weight=1.0, kd_temperature=2.5),
    LossTerms(ce_weight=0.2, kl_weight=0.8, divergence="reverse_kl"),
    LossTerms(ce_weight=0.0, kl_weight=1.5, divergence="reverse_kl", kd_temperature=0.7),
]
ENTROPY = LossTerms(
    ce_weight=EntropyDriven(1.0, 0.5, 0.5, 3.0),
    kl_weight=EntropyDriven(0.0, 0.5, 0.5, 3.0),
    kd_temperature=EntropyDriven(1.5, 3.0, 0.5, 3.0),
)


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


def make_signals() -> dict[str, Teacher]:
    """A teacher of every kind, the dense one with a head larger than the student's, and one smaller."""
    generator = torch.Generator().manual_seed(11)
    draws_NS = torch.stack([torch.randperm(V, generator=generator)[:U] for _ in range(N)])
    counts_NU = torch.randint(0, 5, (N, U), generator=generator).double() + torch.eye(U).repeat(2, 1)[:N]
    hidden, weight = torch.randn(2, V + 4, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(V + 4, generator=generator, dtype=torch.float64)
    return {
        "topk": make_problem()[4],
        "sampled": SampledTeacher(draws_NS, counts_NU / counts_NU.sum(-1, keepdim=True)),
        "larger": DenseTeacher(hidden[:N], weight, bias),
        "smaller": DenseTeacher(hidden[:N], weight[: V - 3], bias[: V - 3], softcap=2.0, scale=1.5),
        "mixed": mix_teachers(hidden[:N], weight, bias),
    }


def mix_teachers(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> MixedTeacher:
    """Two teachers with shares of their own at every row; the first row has but one of them."""
    shares_NP = torch.softmax(hidden_ND[:, :2], -1)
    shares_NP[0] = torch.tensor([0.0, 1.0])
    parts = (DenseTeacher(hidden_ND, weight_VD, bias_V), DenseTeacher(-hidden_ND, weight_VD[: V + 1]))
    return MixedTeacher(parts, shares_NP.log())


def all_combinations() -> list[tuple[str, LossTerms]]:
    """Every signal with every divergence, tail and temperature that it isn't refused with."""
    found = []
    for signal, divergence, tail, T in itertools.product(
        make_signals(), DIVERGENCES, get_args(Tail), (1.0, 2.5)
    ):
        terms = LossTerms(0.3, 0.7, divergence, T, beta=0.3, alpha=0.2, tail=tail)
        with contextlib.suppress(ConfigError):
            refuse_combination(
                terms,
                cast(Signal, {"larger": "dense", "smaller": "hidden", "mixed": "dense"}.get(signal, signal)),
            )
            found.append((signal, terms))
    return [*found, ("topk", ENTROPY), ("larger", ENTROPY)]


COMBINATIONS = all_combinations()


def naive_divergence(s: Tensor, t: Tensor, terms: LossTerms) -> Tensor:
    """Straight from the definitions; outcomes without mass on both sides must be left out before."""
    beta, alpha = terms.beta, terms.alpha

    def kl(p: Tensor, q: Tensor) -> Tensor:
        p, q = p[p > 0], q[p > 0]
        return (p * (p / q).log()).sum()

    match terms.divergence:
        case "forward_kl":
            return kl(t, s)
        case "reverse_kl":
            return kl(s, t)
        case "jsd":
            m = beta * t + (1 - beta) * s
            return beta * kl(t, m) + (1 - beta) * kl(s, m)
        case "skew_forward_kl":
            return kl(t, alpha * t + (1 - alpha) * s)
        case "skew_reverse_kl":
            return kl(s, alpha * s + (1 - alpha) * t)
        case "tvd":
            return (s - t).abs().sum() / 2


def naive_outcomes(row: int, p: Tensor, z: Tensor, teacher: Teacher, tail: str) -> tuple[Tensor, Tensor]:
    """Student's and teacher's probabilities of the outcomes that they are compared over, at temperature 1."""
    if isinstance(teacher, MixedTeacher):
        shares = teacher.log_weights_NP[row].exp()
        parts = [naive_outcomes(row, p, z, part, tail)[1] for part in teacher.parts]
        return p, sum(share * part for share, part in zip(shares, parts, strict=True))  # type: ignore[return-value]
    if isinstance(teacher, DenseTeacher):
        y = teacher.weight_VD @ teacher.hidden_ND[row]
        y = (y if teacher.bias_V is None else y + teacher.bias_V) * teacher.scale
        y = y if teacher.softcap is None else teacher.softcap * torch.tanh(y / teacher.softcap)
        shared = min(len(y), V)
        return torch.softmax(z[:shared], -1), torch.softmax(y[:shared], -1)
    if isinstance(teacher, SampledTeacher):
        drawn = teacher.weights_NU[row] > 0
        ids, weights = teacher.ids_NU[row][drawn], teacher.weights_NU[row][drawn]
        others = torch.ones_like(p, dtype=torch.bool)
        others[ids] = False
        return torch.cat([p[ids], p[others].sum().reshape(1)]), torch.cat([weights, weights.new_zeros(1)])
    assert isinstance(teacher, TopKTeacher)
    ids = teacher.ids_NK[row]
    others = torch.ones_like(p, dtype=torch.bool)
    others[ids] = False
    kept, rest = teacher.logprobs_NK[row].exp(), teacher.tail_logprob_N[row].exp().reshape(1)
    taught = torch.cat([kept / kept.sum(), 0 * rest]) if tail == "renormalised" else torch.cat([kept, rest])
    return torch.cat([p[ids], p[others].sum().reshape(1)]), taught


def naive_loss(logits_NV: Tensor, targets: Tensor, teacher: Teacher, terms: LossTerms) -> Tensor:
    """Probabilities, sums and logs, row by row."""
    total = logits_NV.new_zeros(())
    for row in range(logits_NV.shape[0]):
        p = torch.softmax(logits_NV[row], -1)
        student, taught = naive_outcomes(row, p, logits_NV[row], teacher, terms.tail)
        H = -(taught[taught > 0] * taught[taught > 0].log()).sum()
        ce, kl, T = (
            float(value.at(H)) if isinstance(value, EntropyDriven) else value
            for value in (terms.ce_weight, terms.kl_weight, terms.kd_temperature)
        )
        s = student ** (1 / T) / (student ** (1 / T)).sum()
        t = taught ** (1 / T) / (taught ** (1 / T)).sum()
        if terms.tail == "dropped":
            s, t = s[:-1], t[:-1]
        total = total - ce * p[targets[row]].log()
        if kl > 0:
            total = total + kl * T * T * naive_divergence(s, t, terms)
    return total


@pytest.mark.parametrize(("signal", "terms"), COMBINATIONS)
def test_every_divergence_on_every_signal_equals_its_definition(signal: str, terms: LossTerms) -> None:
    hidden, weight, bias, targets, _ = make_problem()
    teacher = make_signals()[signal]
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    expected = naive_loss(hidden @ weight.T + bias, targets, teacher, terms)
    expected_gradients = torch.autograd.grad(expected, leaves)
    loss = chunked_loss(hidden, weight, targets, terms, teacher=teacher, bias_V=bias, chunk_rows=5)
    gradients = torch.autograd.grad(loss.sum, leaves)
    torch.testing.assert_close(loss.sum, expected, rtol=1e-11, atol=1e-11)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(loss.sum, loss.metrics["ce_weighted"] + loss.metrics["kd_weighted"])


@pytest.mark.parametrize(("signal", "terms"), COMBINATIONS)
def test_gradcheck_of_every_divergence_on_every_signal(signal: str, terms: LossTerms) -> None:
    hidden, weight, bias, targets, _ = make_problem(seed=1)
    teacher = make_signals()[signal].rows(0, 3)

    def loss(hidden_ND: Tensor, bias_V: Tensor) -> Tensor:
        found = chunked_loss(
            hidden_ND, weight, targets[:3], terms, teacher=teacher, bias_V=bias_V, chunk_rows=2
        )
        return found.sum

    assert torch.autograd.gradcheck(loss, [hidden[:3].requires_grad_(), bias.requires_grad_()])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_each_divergence_that_a_config_may_name_moves_the_student(divergence: Divergence) -> None:
    hidden, weight, _, targets, teacher = make_problem(dtype=torch.float32)
    terms = LossTerms(ce_weight=0.0, kl_weight=1.0, divergence=divergence)
    loss = chunked_loss(hidden.requires_grad_(), weight, targets, terms, teacher=teacher)
    (gradient,) = torch.autograd.grad(loss.sum, hidden)
    assert loss.sum > 0 and gradient.norm() > 1e-3


@pytest.mark.parametrize("T", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_equal_to_its_dense_teacher_is_at_rest(divergence: Divergence, T: float) -> None:
    hidden, weight, bias, targets, _ = make_problem()
    terms = LossTerms(0.0, 1.0, divergence, T)
    teacher = DenseTeacher(hidden.clone(), weight.clone(), bias.clone())
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    loss = chunked_loss(hidden, weight, targets, terms, teacher=teacher, bias_V=bias)
    assert abs(loss.sum.item()) < 1e-12
    for gradient in torch.autograd.grad(loss.sum, leaves):
        assert gradient.abs().max() < 1e-12


def test_draws_give_the_dense_gradient_on_average() -> None:
    """Mean over many samples within 3 standard errors of forward KL's dense gradient, everywhere."""
    hidden, weight, _, targets, _ = make_problem()
    taught, rounds, draws = make_signals()["larger"], 400, 20
    assert isinstance(taught, DenseTeacher) and taught.bias_V is not None
    hidden.requires_grad_()
    terms = LossTerms(0.0, 1.0)
    loss = chunked_loss(hidden, weight, targets, terms, teacher=taught)
    (dense,) = torch.autograd.grad(loss.sum, hidden)
    probabilities = torch.softmax((taught.hidden_ND @ taught.weight_VD.T + taught.bias_V)[:, :V], -1)
    generator = torch.Generator().manual_seed(5)
    ids = torch.arange(V).repeat(N, 1)
    found = []
    for _ in range(rounds):
        drawn = torch.multinomial(probabilities, draws, replacement=True, generator=generator)
        weights = torch.zeros(N, V, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=torch.float64)
        )
        teacher = SampledTeacher(ids, weights / draws)
        sampled = chunked_loss(hidden, weight, targets, terms, teacher=teacher)
        found.append(torch.autograd.grad(sampled.sum, hidden)[0])
    gradients = torch.stack(found)
    error = gradients.std(0) / rounds**0.5
    # 104 numbers: a bias shows in their mean square, chance in single ones.
    assert ((gradients.mean(0) - dense) / error).square().mean().sqrt() < 1.3
    assert (gradients.mean(0) - dense).norm() < 3 * error.norm()


def test_weights_of_rows_scale_their_loss_and_not_the_number_of_tokens() -> None:
    hidden, weight, _, targets, teacher = make_problem()
    weights = torch.linspace(0.0, 2.0, N, dtype=torch.float64)
    hidden.requires_grad_()
    for terms in (TERMS[1], ENTROPY):
        loss = chunked_loss(hidden, weight, targets, terms, teacher=teacher, weights_N=weights)
        (gradient,) = torch.autograd.grad(loss.sum, hidden)
        assert loss.num_tokens == N
        for row in range(N):
            alone = chunked_loss(
                hidden[row : row + 1],
                weight,
                targets[row : row + 1],
                terms,
                teacher=teacher.rows(row, row + 1),
            )
            (expected,) = torch.autograd.grad(alone.sum, hidden)
            torch.testing.assert_close(gradient[row], weights[row] * expected[row])


def test_a_padded_vocabulary_equals_slicing_by_hand() -> None:
    """152,064 beside 151,936 in small: only what both have is compared, and padding learns from CE alone."""
    hidden, weight, _, targets, _ = make_problem()
    generator = torch.Generator().manual_seed(2)
    taught, head = torch.randn(2, V + 6, D, generator=generator, dtype=torch.float64)
    terms = LossTerms(0.0, 1.0, "reverse_kl")
    weight.requires_grad_()
    pairs = []
    for teacher_head in (head, head[:V]):
        teacher = DenseTeacher(taught[:N], teacher_head)
        loss = chunked_loss(hidden, weight, targets, terms, teacher=teacher)
        pairs.append((loss.sum, torch.autograd.grad(loss.sum, weight)[0]))
    assert torch.equal(pairs[0][0], pairs[1][0]) and torch.equal(pairs[0][1], pairs[1][1])
    small = DenseTeacher(taught[:N], head[: V - 4])
    loss = chunked_loss(hidden, weight, targets % (V - 4), terms, teacher=small)
    (gradient,) = torch.autograd.grad(loss.sum, weight)
    sliced = chunked_loss(hidden, weight[: V - 4], targets % (V - 4), terms, teacher=small)
    torch.testing.assert_close(loss.sum, sliced.sum)
    assert gradient[V - 4 :].abs().max() == 0 and gradient[: V - 4].abs().max() > 0


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


@pytest.mark.parametrize("signal", ["topk", "larger", "none"])
def test_targets_that_were_likeliest_are_counted_and_change_nothing(signal: str) -> None:
    hidden, weight, bias, targets, _ = make_problem()
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    teacher = make_signals().get(signal)
    terms = LossTerms(0.3, 0.7) if teacher is not None else LossTerms(1.0, 0.0)
    best = (hidden @ weight.T + bias).argmax(-1)
    targets[:7] = best[:7]
    common = {"teacher": teacher, "bias_V": bias, "chunk_rows": 4}
    counted = chunked_loss(hidden, weight, targets, terms, counts_right=True, **common)  # type: ignore[arg-type]
    assert float(counted.metrics["right"]) == float((targets == best).sum()) >= 7
    plain = chunked_loss(hidden, weight, targets, terms, **common)  # type: ignore[arg-type]
    assert torch.equal(counted.sum, plain.sum) and "right" not in plain.metrics
    for one, other in zip(
        *(torch.autograd.grad(x.sum, (hidden, weight)) for x in (counted, plain)), strict=True
    ):
        assert torch.equal(one, other)


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


def test_a_graph_that_is_kept_can_be_asked_again() -> None:
    hidden, weight, bias, targets, teacher = make_problem()
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    loss = chunked_loss(hidden, weight, targets, TERMS[1], teacher=teacher, bias_V=bias).sum
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(2 * loss, leaves)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, other)


def test_no_rows_have_no_loss_and_no_gradient() -> None:
    hidden, weight, _, targets, _ = make_problem()
    weight.requires_grad_()
    loss = chunked_loss(hidden[:0], weight, targets[:0], LossTerms())
    (gradient,) = torch.autograd.grad(loss.sum, weight)
    assert loss.sum == 0 and loss.num_tokens == 0 and gradient.abs().max() == 0


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
    """Padding a teacher from K to K + 2 entries with -inf changes nothing, whatever ids stand there: a stored
    token's, or one of the tail's."""
    hidden, weight, _, targets, teacher = make_problem()
    hidden.requires_grad_()
    in_tail = torch.ones(N, V).scatter_(1, teacher.ids_NK, 0.0).argmax(1, keepdim=True)
    padded = TopKTeacher(
        torch.cat([teacher.ids_NK, teacher.ids_NK[:, :1], in_tail], dim=1),
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
    """I30."""
    with pytest.raises(ConfigError):
        replace(LossTerms(), **change)  # type: ignore[arg-type]


def test_chunks_shrink_with_the_vocabulary() -> None:
    assert choose_chunk_rows(768, "cpu") == 4096
    assert choose_chunk_rows(151_936, "cpu") == 110
    assert choose_chunk_rows(151_936, "cuda") > 800
