"""The loss kernel: from hidden states to loss and gradients, without logits of the whole batch.

Shape letters: N rows that carry loss, D hidden, V vocabulary, C rows per chunk, R rows per block.

Rows are cut into chunks. Each chunk's logits exist once, in one buffer that is reused in place: logits, then
their gradient. Loss *and* gradients come out of this one pass (three matrix products per row; two where the
head is frozen; one more where a dense teacher's logits are made), so backward only scales what is there.
Chunks are as large as matrix products like, blocks of rows within them as small as caches like.
Peak extra memory is chunk * V + N * D + V * D numbers, never N * V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raystill.losses.dense_divergence import finish_logits_, project_teacher
from raystill.losses.loss import Loss
from raystill.losses.row_loss import RowLoss, coarse_row_loss_, dense_row_loss_
from raystill.losses.teachers import Teacher, WholeTeacher
from raystill.losses.terms import LossTerms

_CHUNK_NUMBERS = {"cpu": 1 << 24, "cuda": 1 << 27}
# Few enough for caches, and for an allocator that keeps such memory; a GPU takes a chunk at once.
_BLOCK_NUMBERS = {"cpu": 1 << 21}
_MIN_CHUNK_ROWS, _MAX_CHUNK_ROWS = 32, 4096


def choose_chunk_rows(vocab_size: int, device_type: str) -> int:
    """Rows of a chunk: enough for efficient matrix products, few enough to be small beside the model."""
    numbers = _CHUNK_NUMBERS.get(device_type, _CHUNK_NUMBERS["cuda"])
    return min(max(numbers // vocab_size, _MIN_CHUNK_ROWS), _MAX_CHUNK_ROWS)


@dataclass(frozen=True)
class _Inputs:
    """What a pass reads, all of it detached."""

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    target_ids_N: Tensor
    teacher: Teacher | None
    weights_N: Tensor | None
    terms: LossTerms
    chunk_rows: int
    matmul_dtype: torch.dtype
    with_gradients: bool
    counts_right: bool


@dataclass
class _Outputs:
    """What a pass accumulates: sums over rows (ce, kd, both weighted, and 1 where no token beats the
    target), and gradients where wanted."""

    sums_5: Tensor
    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The type that sums and logits are computed in."""
        return self.sums_5.dtype


def chunked_loss(  # noqa: PLR0913 - one call, one pass
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_ids_N: Tensor,
    terms: LossTerms,
    *,
    teacher: Teacher | None = None,
    bias_V: Tensor | None = None,
    weights_N: Tensor | None = None,
    chunk_rows: int | None = None,
    counts_right: bool = False,
) -> Loss:
    """Sum over rows of ce_weight * CE + kl_weight * T^2 * KD, differentiable in hidden, weight and bias.

    `target_ids_N` int64; `weights_N` multiplies each row's loss, and leaves the number of tokens as it is.
    With kl_weight 0 the teacher isn't looked at, so the result equals plain CE bit for bit. Matrix products
    run in the autocast type where autocast is on; everything else in float32 (float64 inputs stay float64).
    Metrics, detached sums: `ce` and, with a teacher, `kd_kl` (already times T^2), both raw, and
    `ce_weighted` and `kd_weighted` as they enter the loss; with `counts_right`, which takes one more look at
    the logits, `right`: rows where no token is likelier than the target.
    """
    used_teacher = teacher if terms.uses_teacher else None
    if used_teacher is None and terms.uses_teacher:
        raise ValueError("kl_weight > 0 needs a teacher")
    inputs = _Inputs(
        hidden_ND=hidden_ND.detach(),
        weight_VD=weight_VD.detach(),
        bias_V=None if bias_V is None else bias_V.detach(),
        target_ids_N=target_ids_N,
        teacher=used_teacher,
        weights_N=weights_N,
        terms=terms,
        chunk_rows=chunk_rows or choose_chunk_rows(weight_VD.shape[0], hidden_ND.device.type),
        matmul_dtype=_matmul_dtype(hidden_ND),
        with_gradients=torch.is_grad_enabled(),
        counts_right=counts_right,
    )
    loss, sums_5 = _ChunkedLoss.apply(hidden_ND, weight_VD, bias_V, inputs)  # type: ignore[no-untyped-call]
    ce, kd, ce_weighted, kd_weighted, right = sums_5.unbind()
    metrics = {"ce": ce, "ce_weighted": ce_weighted}
    if used_teacher is not None:
        metrics |= {"kd_kl": kd, "kd_weighted": kd_weighted}
    if counts_right:
        metrics["right"] = right
    return Loss(loss, int(target_ids_N.shape[0]), metrics)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, inputs: _Inputs
    ) -> tuple[Tensor, Tensor]:
        ctx.inputs, ctx.wanted = inputs, tuple(ctx.needs_input_grad[:3])
        outputs = _run(inputs, ctx.wanted)
        ctx.gradients = (outputs.hidden_ND, outputs.weight_VD, outputs.bias_V)
        ctx.types = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(outputs.sums_5)
        return outputs.sums_5[2:4].sum(), outputs.sums_5

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # the graph was kept and is asked again
            outputs = _run(ctx.inputs, ctx.wanted)
            gradients = (outputs.hidden_ND, outputs.weight_VD, outputs.bias_V)
        # In place and handed on, so that a head's gradient exists once.
        scaled = [
            None if gradient is None else gradient.mul_(grad_loss).to(dtype)
            for gradient, dtype in zip(gradients, ctx.types, strict=True)
        ]
        return (*scaled, None)


def _run(inputs: _Inputs, wanted: tuple[bool, bool, bool]) -> _Outputs:
    want_hidden, want_weight, want_bias = (inputs.with_gradients and needed for needed in wanted)
    dtype = torch.promote_types(inputs.hidden_ND.dtype, torch.float32)
    weight_VD, bias_V = inputs.weight_VD, inputs.bias_V
    has_rows = inputs.hidden_ND.shape[0] > 0
    outputs = _Outputs(
        sums_5=torch.zeros(5, dtype=dtype, device=weight_VD.device),
        hidden_ND=torch.empty_like(inputs.hidden_ND) if want_hidden else None,
        # The first chunk fills it.
        weight_VD=(torch.empty_like if has_rows else torch.zeros_like)(weight_VD, dtype=dtype)
        if want_weight
        else None,
        bias_V=torch.zeros_like(bias_V, dtype=dtype) if bias_V is not None and want_bias else None,
    )
    _run_chunks(inputs, outputs)
    return outputs


def _run_chunks(inputs: _Inputs, outputs: _Outputs) -> None:
    matmul_dtype = inputs.matmul_dtype
    weight_VD = inputs.weight_VD.to(matmul_dtype)
    N, V = inputs.hidden_ND.shape[0], weight_VD.shape[0]
    buffer_CV = inputs.hidden_ND.new_empty(min(inputs.chunk_rows, N), V, dtype=matmul_dtype)
    for start, stop in _cuts(0, N, inputs.chunk_rows):
        hidden_CD = inputs.hidden_ND[start:stop].to(matmul_dtype)
        logits_CV = torch.mm(hidden_CD, weight_VD.T, out=buffer_CV[: stop - start])
        teacher = None if inputs.teacher is None else inputs.teacher.rows(start, stop)
        taught_CM = project_teacher(teacher, V) if isinstance(teacher, WholeTeacher) else None
        for first, last in _cuts(0, stop - start, _block_rows(V, logits_CV.device.type)):
            taught_RM = None if taught_CM is None else taught_CM[first:last]
            _run_block(inputs, outputs, logits_CV[first:last], taught_RM, start + first)
        taught_CM = taught_RM = None  # else it would still be there while the next chunk's is made
        if not inputs.with_gradients:
            continue
        if outputs.bias_V is not None:
            outputs.bias_V.add_(logits_CV.sum(dim=0, dtype=outputs.dtype))
        if outputs.hidden_ND is not None:
            outputs.hidden_ND[start:stop] = logits_CV @ weight_VD
        if outputs.weight_VD is not None:
            _accumulate(outputs.weight_VD, logits_CV.T, hidden_CD, is_first=start == 0)


def _run_block(
    inputs: _Inputs, outputs: _Outputs, logits_RV: Tensor, taught_RM: Tensor | None, first: int
) -> None:
    """Add the sums of the rows from `first` on; turn their logits into the loss's gradient, in place.

    `taught_RM` is a dense teacher's product of the same rows.
    """
    last = first + logits_RV.shape[0]
    exact_RV = logits_RV.to(outputs.dtype)
    if inputs.bias_V is not None:
        exact_RV.add_(inputs.bias_V)
    teacher = None if inputs.teacher is None else inputs.teacher.rows(first, last)
    weights_R = None if inputs.weights_N is None else inputs.weights_N[first:last].to(outputs.dtype)
    targets_R, flag = inputs.target_ids_N[first:last], inputs.with_gradients
    if inputs.counts_right:  # before the logits' memory is used for their gradient
        own_R = exact_RV.gather(1, targets_R.unsqueeze(-1)).squeeze(-1)
        outputs.sums_5[4] += (own_R == exact_RV.amax(dim=-1)).sum()
    if isinstance(teacher, WholeTeacher):
        assert taught_RM is not None
        known_RM = finish_logits_(taught_RM, teacher, outputs.dtype)
        found = dense_row_loss_(exact_RV, targets_R, known_RM, inputs.terms, weights_R, with_gradient=flag)
    else:
        found = coarse_row_loss_(exact_RV, targets_R, teacher, inputs.terms, weights_R, with_gradient=flag)
    _add_sums(outputs.sums_5, found)
    if found.gradient_NV is not None and logits_RV.dtype != outputs.dtype:
        logits_RV.copy_(found.gradient_NV)


def _add_sums(sums_5: Tensor, found: RowLoss) -> None:
    sums_5[0] += found.ce_N.sum()
    sums_5[2] += (found.ce_N * found.ce_weight).sum()
    if found.kd_N is not None:
        sums_5[1] += found.kd_N.sum()
        sums_5[3] += (found.kd_N * found.kl_weight).sum()


def _cuts(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _block_rows(vocab_size: int, device_type: str) -> int:
    numbers = _BLOCK_NUMBERS.get(device_type)
    return _MAX_CHUNK_ROWS if numbers is None else max(numbers // vocab_size, 1)


def _matmul_dtype(hidden_ND: Tensor) -> torch.dtype:
    device_type = hidden_ND.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden_ND.dtype


def _accumulate(total_VD: Tensor, gradient_VC: Tensor, hidden_CD: Tensor, *, is_first: bool) -> None:
    """total += gradient @ hidden, summed across chunks in the type of `total`; the first chunk begins it."""
    if gradient_VC.dtype != total_VD.dtype:
        product_VD = gradient_VC @ hidden_CD
        total_VD.copy_(product_VD) if is_first else total_VD.add_(product_VD)
    elif is_first:
        torch.mm(gradient_VC, hidden_CD, out=total_VD)
    else:
        total_VD.addmm_(gradient_VC, hidden_CD)
