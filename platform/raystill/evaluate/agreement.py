"""How close a student's distributions are to the teacher's, on the teacher's own completions.

The student reads prompt + completion (teacher forcing) and is compared with the stored signals.
Shape letters: B rows, T positions, C completion tokens (padded), V vocabulary, K stored logprobs, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raystill.errors import DataError
from raystill.evaluate.calibration import ReliabilityBins, bin_confidences
from raystill.losses.teachers import TopKTeacher
from raystill.losses.topk_divergence import compute_topk_divergence
from raystill.store.records import TeacherRow

_LOGITS_BYTES = 256 << 20  # float32 logits of one batch, which bounds the memory of a large vocabulary


@dataclass(frozen=True)
class RowAgreement:
    """Sums over the `num_tokens` completion tokens of one row, in nats; None where no signal is stored.

    `kl_sum` is KL(teacher || student) over the stored tokens and the tail as one more outcome (never above
    the KL over the whole vocabulary), `top1_matches` counts tokens where both have the same favourite, and
    `nll_sum` is minus the student's logprob of the teacher's tokens. `bins` hold how sure the student was of
    its favourite, and how often that was the teacher's token.
    """

    num_tokens: int
    nll_sum: float
    kl_sum: float | None
    top1_matches: int | None
    bins: ReliabilityBins | None = None


def measure_agreement(
    model: Any, rows: Sequence[TeacherRow], *, pad_id: int, context: int
) -> list[RowAgreement | None]:
    """Agreement of `model` with every row, in the order of `rows`; None for rows that don't fit its context.

    Raises DataError if the model lacks a token of the teacher, or computes logits that are not finite.
    """
    fitting = [
        index
        for index, row in enumerate(rows)
        if len(row.completion_token_ids) > 0
        and len(row.prompt_token_ids) > 0
        and len(row.prompt_token_ids) + len(row.completion_token_ids) <= context
    ]
    fitting.sort(key=lambda index: (len(rows[index].completion_token_ids), len(rows[index].prompt_token_ids)))
    results: list[RowAgreement | None] = [None] * len(rows)
    vocab_size = int(model.config.get_text_config().vocab_size)
    for batch in _iter_batches(rows, fitting, vocab_size):
        measured = _measure_batch(model, [rows[index] for index in batch], pad_id)
        for index, agreement in zip(batch, measured, strict=True):
            results[index] = agreement
    return results


def _iter_batches(rows: Sequence[TeacherRow], order: Sequence[int], vocab_size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in order:
        # `order` rises with the completion length, so the newest row sets the batch's width.
        width = len(rows[index].completion_token_ids) + 1
        if batch and (len(batch) + 1) * width * vocab_size * 4 > _LOGITS_BYTES:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def _measure_batch(model: Any, rows: list[TeacherRow], pad_id: int) -> list[RowAgreement]:
    longest = max(len(row.prompt_token_ids) + len(row.completion_token_ids) for row in rows)
    widest = max(len(row.completion_token_ids) for row in rows)
    input_ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor([*row.prompt_token_ids.tolist(), *row.completion_token_ids.tolist()])
        input_ids_BT[index, longest - len(ids) :] = ids
        mask_BT[index, longest - len(ids) :] = 1
    vocab_size = int(model.config.get_text_config().vocab_size)
    largest_B = input_ids_BT.amax(dim=1)
    if int(largest_B.max()) >= vocab_size:
        raise DataError(
            f"the teacher's token {int(largest_B.max())} is outside the student's vocabulary of {vocab_size}",
            where=f"prompt {rows[int(largest_B.argmax())].prompt_id}",
            fix="give the student the teacher's tokenizer and vocabulary",
        )
    logits_BCV = model(
        input_ids=input_ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0).to(model.device),
        use_cache=False,
        logits_to_keep=widest + 1,
    ).logits
    # Rows end together, so the logits that predict the last c tokens are the last c before the very last.
    return [
        _measure_row(logits_BCV[index, -len(row.completion_token_ids) - 1 : -1], row)
        for index, row in enumerate(rows)
    ]


def _measure_row(logits_NV: torch.Tensor, row: TeacherRow) -> RowAgreement:
    logits_NV = logits_NV.float()
    if not bool(torch.isfinite(logits_NV).all()):
        raise DataError("the model computes logits that are not finite", fix="train it again")
    target_N = torch.tensor(row.completion_token_ids.tolist(), device=logits_NV.device)
    nll = torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="sum")
    bins = bin_confidences(logits_NV, target_N)
    if row.signal is None:
        return RowAgreement(len(target_N), float(nll), None, None, bins)
    ids_NK = torch.from_numpy(row.signal.topk_ids_TK.astype("int64")).to(logits_NV.device)
    teacher = TopKTeacher(
        ids_NK,
        torch.from_numpy(row.signal.topk_logprobs_TK.astype("float32")).to(logits_NV.device),
        torch.from_numpy(row.signal.tail_logprob_T.astype("float32")).to(logits_NV.device),
    )
    kl_N = compute_topk_divergence(logits_NV, teacher, "forward_kl")
    matches = (logits_NV.argmax(dim=-1) == ids_NK[:, 0]).sum()
    return RowAgreement(len(target_N), float(nll), float(kl_N.double().sum()), int(matches), bins)
