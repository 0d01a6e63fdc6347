"""The loss kernel: from hidden states to loss and gradients, without logits of the whole batch.

Shape letters: N rows that carry loss, D hidden, V vocabulary, K stored logprobs, J = K + 1, C rows per chunk.

Rows are cut into chunks. Each chunk's logits exist once, in one buffer that is reused in place: logits,
then exponentials, then the gradient in the logits. Loss *and* gradients come out of this one pass (three
matrix products per row; two where the head is frozen), so backward only scales what is already there.
Peak extra memory is chunk * V + N * D + V * D numbers, never N * V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raystill.losses.cross_entropy import cross_entropy
from raystill.losses.loss import Loss
from raystill.losses.teachers import TopKTeacher
from raystill.losses.terms import LossTerms
from raystill.losses.topk_divergence import coarse_divergence, coarsen_, refine_

_CHUNK_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 27}
_MIN_CHUNK_ROWS, _MAX_CHUNK_ROWS = 32, 4096


def choose_chunk_rows(vocab_size: int, device_type: str) -> int:
    """Rows of a chunk, so that a chunk's logits stay near the cache (CPU) or fill the device (CUDA)."""
    numbers = _CHUNK_NUMBERS.get(device_type, _CHUNK_NUMBERS["cuda"])
    return min(max(numbers // vocab_size, _MIN_CHUNK_ROWS), _MAX_CHUNK_ROWS)


@dataclass(frozen=True)
class _Pass:
    """What one pass computes, and how it is cut."""

    terms: LossTerms
    chunk_rows: int
    with_gradients: bool


@dataclass
class _Outputs:
    """What one pass accumulates: sums over rows, and gradients where they are wanted."""

    sums_3: Tensor  # weighted loss, CE, KD
    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None


def chunked_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_ids_N: Tensor,
    terms: LossTerms,
    *,
    teacher: TopKTeacher | None = None,
    bias_V: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Loss:
    """Sum over rows of ce_weight * CE + kl_weight * T^2 * KD, differentiable in hidden, weight and bias.

    `target_ids_N` int64. With kl_weight 0 the teacher isn't looked at, so the result equals plain CE bit for
    bit. Matrix products run in the autocast type where autocast is on; everything else in float32 (float64
    inputs stay float64). Metrics: `ce` and, with a teacher, `kd_kl` (already times T^2): detached sums.
    """
    used_teacher = teacher if terms.kl_weight > 0 else None
    if used_teacher is None and terms.kl_weight > 0:
        raise ValueError("kl_weight > 0 needs a teacher")
    rows = chunk_rows or choose_chunk_rows(weight_VD.shape[0], hidden_ND.device.type)
    plan = _Pass(terms, rows, torch.is_grad_enabled())
    loss, ce, kd = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, target_ids_N, used_teacher, plan
    )
    metrics = {"ce": ce} if used_teacher is None else {"ce": ce, "kd_kl": kd}
    return Loss(loss, int(target_ids_N.shape[0]), metrics)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_ids_N: Tensor,
        teacher: TopKTeacher | None,
        plan: _Pass,
    ) -> tuple[Tensor, Tensor, Tensor]:
        want_hidden, want_weight, want_bias = (
            plan.with_gradients and needed for needed in ctx.needs_input_grad[:3]
        )
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        outputs = _Outputs(
            sums_3=torch.zeros(3, dtype=dtype, device=hidden_ND.device),
            hidden_ND=torch.empty_like(hidden_ND) if want_hidden else None,
            weight_VD=torch.zeros_like(weight_VD, dtype=dtype) if want_weight else None,
            bias_V=torch.zeros_like(bias_V, dtype=dtype) if bias_V is not None and want_bias else None,
        )
        _run_chunks(hidden_ND, weight_VD, bias_V, target_ids_N, teacher, plan, outputs)
        ctx.gradients = (outputs.hidden_ND, outputs.weight_VD, outputs.bias_V)
        ctx.types = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        loss, ce, kd = (value.clone() for value in outputs.sums_3)
        ctx.mark_non_differentiable(ce, kd)
        return loss, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else (gradient * grad_loss).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.types, strict=True)
        ]
        return (*scaled, None, None, None)


def _run_chunks(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_ids_N: Tensor,
    teacher: TopKTeacher | None,
    plan: _Pass,
    outputs: _Outputs,
) -> None:
    chunk_rows = plan.chunk_rows
    dtype = outputs.sums_3.dtype
    matmul_dtype = _matmul_dtype(hidden_ND)
    weight_VD = weight_VD.detach().to(matmul_dtype)
    N, V = hidden_ND.shape[0], weight_VD.shape[0]
    buffer_CV = torch.empty(min(chunk_rows, N), V, dtype=matmul_dtype, device=hidden_ND.device)
    for start in range(0, N, chunk_rows):
        stop = min(start + chunk_rows, N)
        hidden_CD = hidden_ND[start:stop].detach().to(matmul_dtype)
        logits_CV = torch.mm(hidden_CD, weight_VD.T, out=buffer_CV[: stop - start]).to(dtype)
        if bias_V is not None:
            logits_CV.add_(bias_V.detach())
        rows = None if teacher is None else teacher.rows(start, stop)
        gradient_CV = _chunk_loss(logits_CV, target_ids_N[start:stop], rows, plan, outputs)
        if gradient_CV is None:
            continue
        if outputs.bias_V is not None:
            outputs.bias_V.add_(gradient_CV.sum(dim=0))
        gradient_CV = gradient_CV.to(matmul_dtype)
        if outputs.hidden_ND is not None:
            outputs.hidden_ND[start:stop] = gradient_CV @ weight_VD
        if outputs.weight_VD is not None:
            _accumulate(outputs.weight_VD, gradient_CV.T, hidden_CD)


def _chunk_loss(
    logits_CV: Tensor,
    target_ids_C: Tensor,
    teacher: TopKTeacher | None,
    plan: _Pass,
    outputs: _Outputs,
) -> Tensor | None:
    """Add the chunk's sums to `outputs`; return its gradient in the logits, in the memory of `logits_CV`."""
    terms = plan.terms
    target_ids_C1 = target_ids_C.unsqueeze(-1)
    target_logits_C = logits_CV.gather(1, target_ids_C1).squeeze(-1)
    coarse = coarsen_(logits_CV, teacher)
    ce_C, probabilities_CJ = cross_entropy(coarse.logits_NJ, target_logits_C)
    loss_C, gradient_CJ = terms.ce_weight * ce_C, terms.ce_weight * probabilities_CJ
    if teacher is not None:
        teacher_CJ = teacher.coarse_logprobs(logits_CV.dtype)
        kd_C, kd_gradient_CJ = coarse_divergence(
            coarse.logits_NJ, teacher_CJ, terms.divergence, terms.kd_temperature
        )
        loss_C = loss_C + terms.kl_weight * kd_C
        gradient_CJ = gradient_CJ + terms.kl_weight * kd_gradient_CJ
        outputs.sums_3[2] += kd_C.sum()
    outputs.sums_3[0] += loss_C.sum()
    outputs.sums_3[1] += ce_C.sum()
    if not plan.with_gradients:
        return None
    gradient_CV = refine_(coarse, gradient_CJ, teacher)
    onehot_C1 = torch.full_like(target_ids_C1, -1, dtype=logits_CV.dtype).mul_(terms.ce_weight)
    return gradient_CV.scatter_add_(1, target_ids_C1, onehot_C1)


def _matmul_dtype(hidden_ND: Tensor) -> torch.dtype:
    device_type = hidden_ND.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden_ND.dtype


def _accumulate(total_VD: Tensor, gradient_VC: Tensor, hidden_CD: Tensor) -> None:
    """total += gradient @ hidden, summed across chunks in the type of `total`."""
    if gradient_VC.dtype == total_VD.dtype:
        total_VD.addmm_(gradient_VC, hidden_CD)
    else:
        total_VD.add_(gradient_VC @ hidden_CD)
