"""A teacher at the best tokens of teacher *and* student: what reverse divergences need of a top k.

A top k of the teacher alone says nothing of where the student puts its own mass, so a reverse or JS
divergence on it never sees the student's mistakes. With both sides' best tokens the rest, one tail bucket,
is small for both.

Shape letters: C rows of a chunk, N rows that carry loss, V vocabulary, M the
vocabulary that both have, K picked tokens (2k).
"""

from __future__ import annotations

import torch
from torch import Tensor

from raystill.losses.chunked import choose_chunk_rows
from raystill.losses.dense_divergence import finish_logits_, project_teacher
from raystill.losses.teachers import DenseTeacher, TopKTeacher, WholeTeacher
from raystill.train.objective import Head


def pick_union_topk(
    teacher: WholeTeacher, student_hidden_ND: Tensor, student_head: Head, num_logprobs: int
) -> TopKTeacher:
    """The teacher at the `num_logprobs` best tokens of each side, chunk by chunk: never N * V numbers.

    A token that both sides picked counts once: its repeat is marked absent.
    """
    N, V = student_hidden_ND.shape[0], student_head.weight_VD.shape[0]
    student = DenseTeacher(student_hidden_ND, student_head.weight_VD, student_head.bias_V)
    chunk_rows = choose_chunk_rows(V, student_hidden_ND.device.type)
    parts = []
    with torch.no_grad():
        for start in range(0, max(N, 1), chunk_rows):
            stop = min(start + chunk_rows, N)
            logprobs_CM = _logits(teacher.rows(start, stop), V).log_softmax(dim=-1)
            student_CM = _logits(student.rows(start, stop), logprobs_CM.shape[1])
            parts.append(_pick(logprobs_CM, student_CM, min(num_logprobs, logprobs_CM.shape[1])))
    ids, logprobs, tails = zip(*parts, strict=True)
    return TopKTeacher(torch.cat(ids), torch.cat(logprobs), torch.cat(tails))


def _logits(model: WholeTeacher, vocab_size: int) -> Tensor:
    product = project_teacher(model, vocab_size)
    return finish_logits_(product, model, torch.promote_types(product.dtype, torch.float32))


def _pick(logprobs_CM: Tensor, student_CM: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    ids_CK = torch.cat([logprobs_CM.topk(wanted).indices, student_CM.topk(wanted).indices], dim=-1)
    ids_CK = ids_CK.sort(dim=-1).values
    repeated_CK = torch.zeros_like(ids_CK, dtype=torch.bool)
    repeated_CK[:, 1:] = ids_CK[:, 1:] == ids_CK[:, :-1]
    picked_CK = logprobs_CM.gather(-1, ids_CK).masked_fill(repeated_CK, -torch.inf)
    tail_C = logprobs_CM.scatter(-1, ids_CK, -torch.inf).logsumexp(dim=-1)
    return ids_CK, picked_CK, tail_C
