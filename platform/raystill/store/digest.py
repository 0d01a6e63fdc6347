"""Digests of content: equal for equal rows, however they were ordered and cut into parts."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np

from raystill.store.records import Reject, Score, TeacherRow, TopKSignal

_length = struct.Struct("<q").pack
_NOTHING = _length(-1)


def row_digest(row: TeacherRow) -> int:
    """A 256-bit digest of everything a row says, except how long it took."""
    pieces = _texts(
        (
            row.key, row.prompt_id, row.split, row.source, row.messages, row.completion, row.finish_reason,
            row.teacher_id, row.reasoning, row.tool_calls, row.usage, str(row.sample_index),
            repr(float(row.cost_usd)), *row.flags,
        ),
    )  # fmt: skip
    for ids in (row.prompt_token_ids, row.completion_token_ids):
        pieces += _array(ids, "<i4")
    return _digest(pieces + _signal(row.signal))


def score_digest(score: Score) -> int:
    """A 256-bit digest of one score."""
    pieces = _texts((score.key,)) + _signal(score.signal)
    if score.ids is not None:
        pieces += _array(score.ids.prompt_token_ids, "<i4")
        pieces += _array(score.ids.completion_token_ids, "<i4")
    return _digest(pieces)


def reject_digest(reject: Reject) -> int:
    """A 256-bit digest of what failed and why; attempts and their cost are left out."""
    return _digest(_texts((reject.key, reject.prompt_id, reject.stage, reject.code, reject.reason)))


def _digest(pieces: list[bytes]) -> int:
    return int.from_bytes(hashlib.sha256(b"".join(pieces)).digest(), "big")


def _texts(texts: Iterable[str | None]) -> list[bytes]:
    pieces: list[bytes] = []
    for text in texts:
        if text is None:
            pieces.append(_NOTHING)
        else:
            raw = text.encode("utf-8", "surrogatepass")
            pieces += (_length(len(raw)), raw)
    return pieces


def _array(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]], kind: str) -> list[bytes]:
    raw = np.ascontiguousarray(values, dtype=kind)
    return [_length(raw.size), raw.tobytes()]


def _signal(signal: TopKSignal | None) -> list[bytes]:
    if signal is None:
        return [_NOTHING]
    return [
        _length(signal.num_logprobs),
        *_array(signal.topk_ids_TK, "<i4"),
        *_array(signal.topk_logprobs_TK, "<f2"),
        *_array(signal.sampled_logprob_T, "<f4"),
        *_array(signal.tail_logprob_T, "<f4"),
    ]
