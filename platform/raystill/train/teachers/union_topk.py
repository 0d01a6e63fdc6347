"""A teacher at the best tokens of teacher *and* student: what reverse divergences need of a top k.

A top k of the teacher alone says nothing of where the student puts its own mass, so a reverse or JS
divergence on it never sees the student's mistakes. With both sides' best tokens the rest, one tail bucket,
is small for both.

Shape letters: C rows of a chunk, N rows that carry loss, V vocabulary, M the
vocabulary that both have, K best tokens of one side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raystill.losses.chunked import choose_chunk_rows
from raystill.losses.dense_divergence import finish_logits_, project_teacher
from raystill.losses.teachers import DenseTeacher, TopKTeacher, WholeTeacher
from raystill.train.objective import Head


def best_tokens(hidden_ND: Tensor, head: Head, vocab_size: int, count: int) -> Tensor:
    """[N, K] the `count` most likely of the first `vocab_size` tokens; chunk by chunk, never [N, V]."""
    model = DenseTeacher(hidden_ND.detach(), head.weight_VD, head.bias_V)
    with torch.no_grad():
        found = [
            _logits(model.rows(start, stop), vocab_size).topk(min(count, vocab_size)).indices
            for start, stop in _cuts(hidden_ND, vocab_size)
        ]
    return torch.cat(found)


def score_union(teacher: WholeTeacher, student_ids_NK: Tensor, vocab_size: int) -> TopKTeacher:
    """The teacher at `student_ids_NK` and at as many best tokens of its own, of the first `vocab_size`.

    A token that both sides picked counts once: its repeat is marked absent.
    """
    with torch.no_grad():
        parts = [
            _score(
                _logits(teacher.rows(start, stop), vocab_size).log_softmax(dim=-1), student_ids_NK[start:stop]
            )
            for start, stop in _cuts(student_ids_NK, vocab_size)
        ]
    ids, logprobs, tails = zip(*parts, strict=True)
    return TopKTeacher(torch.cat(ids), torch.cat(logprobs), torch.cat(tails))


def _cuts(rows_N: Tensor, vocab_size: int) -> list[tuple[int, int]]:
    """Chunks of the rows of a tensor; one without rows where there are none."""
    count, size = rows_N.shape[0], choose_chunk_rows(vocab_size, rows_N.device.type)
    return [(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def _logits(model: WholeTeacher, vocab_size: int) -> Tensor:
    product = project_teacher(model, vocab_size)
    return finish_logits_(product, model, torch.promote_types(product.dtype, torch.float32))


def _score(logprobs_CM: Tensor, student_CK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ids_CK = torch.cat([logprobs_CM.topk(student_CK.shape[1]).indices, student_CK], dim=-1)
    ids_CK = ids_CK.sort(dim=-1).values
    repeated_CK = torch.zeros_like(ids_CK, dtype=torch.bool)
    repeated_CK[:, 1:] = ids_CK[:, 1:] == ids_CK[:, :-1]
    picked_CK = logprobs_CM.gather(-1, ids_CK).masked_fill(repeated_CK, -torch.inf)
    tail_C = logprobs_CM.scatter(-1, ids_CK, -torch.inf).logsumexp(dim=-1)
    return ids_CK, picked_CK, tail_C
