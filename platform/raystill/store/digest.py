"""Digests of content: equal for equal rows, however they were ordered and cut into parts."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np

from raystill.store.records import Reject, TeacherRow, TopKSignal


def row_digest(row: TeacherRow) -> int:
    """A 256-bit digest of everything a row says, except how long it took."""
    digest = hashlib.sha256()
    _feed(
        digest,
        (
            row.key, row.prompt_id, row.split, row.source, row.messages, row.completion, row.finish_reason,
            row.teacher_id, row.reasoning, row.tool_calls, row.usage, str(row.sample_index),
            repr(float(row.cost_usd)), *row.flags,
        ),
    )  # fmt: skip
    for ids in (row.prompt_token_ids, row.completion_token_ids):
        _feed_array(digest, ids, "<i4")
    _feed_signal(digest, row.signal)
    return int.from_bytes(digest.digest(), "big")


def score_digest(key: str, signal: TopKSignal) -> int:
    """A 256-bit digest of one score."""
    digest = hashlib.sha256()
    _feed(digest, (key,))
    _feed_signal(digest, signal)
    return int.from_bytes(digest.digest(), "big")


def reject_digest(reject: Reject) -> int:
    """A 256-bit digest of what failed and why; attempts and their cost are left out."""
    digest = hashlib.sha256()
    _feed(digest, (reject.key, reject.prompt_id, reject.stage, reject.code, reject.reason))
    return int.from_bytes(digest.digest(), "big")


def _feed(digest: hashlib._Hash, texts: Iterable[str | None]) -> None:
    for text in texts:
        raw = b"" if text is None else text.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<q", -1 if text is None else len(raw)) + raw)


def _feed_array(
    digest: hashlib._Hash, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]], kind: str
) -> None:
    raw = np.ascontiguousarray(values, dtype=kind)
    digest.update(struct.pack("<q", raw.size))
    digest.update(raw.tobytes())


def _feed_signal(digest: hashlib._Hash, signal: TopKSignal | None) -> None:
    digest.update(struct.pack("<q", -1 if signal is None else signal.num_logprobs))
    if signal is not None:
        _feed_array(digest, signal.topk_ids_TK, "<i4")
        _feed_array(digest, signal.topk_logprobs_TK, "<f2")
        _feed_array(digest, signal.sampled_logprob_T, "<f4")
        _feed_array(digest, signal.tail_logprob_T, "<f4")
