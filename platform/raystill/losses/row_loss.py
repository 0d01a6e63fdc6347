"""Loss and gradient in the logits of a few rows: cross entropy and divergence from the same logits.

Shape letters: N rows, V vocabulary, M vocabulary of teacher and student, J coarse outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raystill.losses.cross_entropy import cross_entropy
from raystill.losses.dense_divergence import dense_divergence_
from raystill.losses.divergences import entropy
from raystill.losses.teachers import SampledTeacher, TopKTeacher
from raystill.losses.terms import EntropyDriven, LossTerms, Value
from raystill.losses.topk_divergence import coarse_divergence, coarsen_, refine_, teacher_outcomes


@dataclass(frozen=True)
class RowLoss:
    """Raw values per row, the weights they enter the loss with, and the weighted loss's gradient.

    `gradient_NV` lies in the memory of the logits; None where it wasn't asked for.
    """

    ce_N: Tensor
    kd_N: Tensor | None
    ce_weight: float | Tensor
    kl_weight: float | Tensor
    gradient_NV: Tensor | None


@dataclass(frozen=True)
class _Scales:
    """Weights and temperature of some rows: a number, or [N, 1]."""

    ce_weight: float | Tensor
    kl_weight: float | Tensor
    temperature: float | Tensor


def coarse_row_loss_(
    logits_NV: Tensor,
    target_ids_N: Tensor,
    teacher: TopKTeacher | SampledTeacher | None,
    terms: LossTerms,
    weights_N: Tensor | None,
    *,
    with_gradient: bool,
) -> RowLoss:
    """Against a top k, a sample, or nothing. One exponential per logit whatever the terms are."""
    topk = teacher.as_topk() if isinstance(teacher, SampledTeacher) else teacher
    target_ids_N1 = target_ids_N.unsqueeze(-1)
    target_logits_N = logits_NV.gather(1, target_ids_N1).squeeze(-1)
    coarse = coarsen_(logits_NV, topk)
    log_t_NJ = None if topk is None else teacher_outcomes(topk, terms.tail, logits_NV.dtype)
    scales = _scales(terms, log_t_NJ, weights_N)
    ce_N, probabilities_NJ = cross_entropy(coarse.logits_NJ, target_logits_N)
    gradient_NJ, kd_N = scales.ce_weight * probabilities_NJ, None
    if log_t_NJ is not None:
        kd_N, kd_gradient_NJ = coarse_divergence(coarse.logits_NJ, log_t_NJ, terms, scales.temperature)
        gradient_NJ = gradient_NJ + scales.kl_weight * kd_gradient_NJ
    if not with_gradient:
        return RowLoss(ce_N, kd_N, _flat(scales.ce_weight), _flat(scales.kl_weight), None)
    gradient_NV = refine_(coarse, gradient_NJ, topk)
    _subtract_onehot_(gradient_NV, target_ids_N1, scales.ce_weight)
    return RowLoss(ce_N, kd_N, _flat(scales.ce_weight), _flat(scales.kl_weight), gradient_NV)


def dense_row_loss_(
    logits_NV: Tensor,
    target_ids_N: Tensor,
    teacher_logits_NM: Tensor,
    terms: LossTerms,
    weights_N: Tensor | None,
    *,
    with_gradient: bool,
) -> RowLoss:
    """Against a teacher's logits over the first M tokens; cross entropy over all V."""
    M = teacher_logits_NM.shape[1]
    target_ids_N1 = target_ids_N.unsqueeze(-1)
    log_t_NM = torch.log_softmax(teacher_logits_NM, dim=-1)
    scales = _scales(terms, log_t_NM, weights_N)
    log_s_NM = _tempered(logits_NV[:, :M], scales.temperature)
    log_p_NV = log_s_NM if log_s_NM.shape == logits_NV.shape and _is(scales.temperature, 1.0) else None
    if log_p_NV is None:
        log_p_NV = torch.log_softmax(logits_NV, dim=-1)
    ce_N = -log_p_NV.gather(1, target_ids_N1).squeeze(-1)
    learns_tokens = not _is(scales.ce_weight, 0.0)
    if with_gradient and learns_tokens:
        torch.exp(log_p_NV, out=logits_NV).mul_(scales.ce_weight)
        _subtract_onehot_(logits_NV, target_ids_N1, scales.ce_weight)
    log_t_NM = log_t_NM if _is(scales.temperature, 1.0) else _tempered(log_t_NM, scales.temperature)
    kd_N, gradient_NM = dense_divergence_(log_s_NM, log_t_NM, terms, scales.temperature)
    if with_gradient and learns_tokens:
        logits_NV[:, :M].add_(gradient_NM.mul_(scales.kl_weight))
    elif with_gradient:
        torch.mul(gradient_NM, scales.kl_weight, out=logits_NV[:, :M])
        logits_NV[:, M:].zero_()
    gradient_NV = logits_NV if with_gradient else None
    return RowLoss(ce_N, kd_N, _flat(scales.ce_weight), _flat(scales.kl_weight), gradient_NV)


def _tempered(logits_NM: Tensor, temperature: float | Tensor) -> Tensor:
    return torch.log_softmax(logits_NM if _is(temperature, 1.0) else logits_NM / temperature, dim=-1)


def _is(scale: float | Tensor, number: float) -> bool:
    return not isinstance(scale, Tensor) and scale == number


def _scales(terms: LossTerms, log_t_NJ: Tensor | None, weights_N: Tensor | None) -> _Scales:
    entropy_N1 = entropy(log_t_NJ).unsqueeze(-1) if terms.needs_entropy and log_t_NJ is not None else None
    ce, kl, temperature = (
        _at(value, entropy_N1) for value in (terms.ce_weight, terms.kl_weight, terms.kd_temperature)
    )
    if weights_N is not None:
        weights_N1 = weights_N.unsqueeze(-1)
        ce, kl = ce * weights_N1, kl * weights_N1
    return _Scales(ce, kl, temperature)


def _at(value: Value, entropy_N1: Tensor | None) -> float | Tensor:
    if not isinstance(value, EntropyDriven):
        return value
    assert entropy_N1 is not None, "an entropy-driven value needs a teacher"
    return value.at(entropy_N1)


def _flat(scale: float | Tensor) -> float | Tensor:
    return scale.squeeze(-1) if isinstance(scale, Tensor) else scale


def _subtract_onehot_(gradient_NV: Tensor, target_ids_N1: Tensor, ce_weight: float | Tensor) -> None:
    onehot_N1 = torch.full_like(target_ids_N1, -1, dtype=gradient_NV.dtype).mul_(ce_weight)
    gradient_NV.scatter_add_(1, target_ids_N1, onehot_N1)
