"""The check that every signal passes before it is written, and again in `store verify`.

It catches what trains garbage silently: distributions shifted by a position, unnormalised logprobs, ids that
are not sorted with their logprobs, another row's signal. Shape letters: T completion tokens, K logprobs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raystill.errors import DataError
from raystill.store.records import Float32Array, Int32Array, TeacherRow, TopKSignal

BoolArray = npt.NDArray[np.bool_]

# float16 has 11 significant bits: a logprob x is off by at most |x| * 2^-11. Twice that, and an absolute
# floor for the engines' own rounding, is allowed.
_RELATIVE_TOLERANCE = 2.0**-10
_ABSOLUTE_TOLERANCE = 2e-3
# Errors of p are p * |x| * 2^-11, so their sum is below the entropy of the top k times 2^-11: under 2e-3.
_MASS_TOLERANCE = 1e-2


def check_rows(rows: Sequence[TeacherRow]) -> None:
    """Raises DataError naming the key and position of the first signal that contradicts its row."""
    check_signals([(row.key, row.signal, row.completion_token_ids) for row in rows if row.signal is not None])


def check_signals(signals: Sequence[tuple[str, TopKSignal, Int32Array | None]]) -> None:
    """Check (key, signal, completion_token_ids) triples; ids None leaves the sampled token unchecked.

    Signals with the same K are checked as one array.
    """
    by_width: dict[int, list[tuple[str, TopKSignal, Int32Array | None]]] = {}
    for key, signal, token_ids in signals:
        T = len(signal.sampled_logprob_T)
        if token_ids is not None and len(token_ids) != T:
            raise DataError(
                f"the signal has {T} positions for {len(token_ids)} completion tokens", where=f"key {key}"
            )
        by_width.setdefault(signal.num_logprobs, []).append((key, signal, token_ids))
    for group in by_width.values():
        _check_group(group)


def _check_group(group: list[tuple[str, TopKSignal, Int32Array | None]]) -> None:
    ids_TK = np.concatenate([signal.topk_ids_TK for _, signal, _ in group])
    logprobs_TK = np.concatenate([signal.topk_logprobs_TK for _, signal, _ in group]).astype(np.float32)
    sampled_T = np.concatenate([signal.sampled_logprob_T for _, signal, _ in group])
    tail_T = np.concatenate([signal.tail_logprob_T for _, signal, _ in group])
    keys, lengths = [key for key, _, _ in group], [len(s.sampled_logprob_T) for _, s, _ in group]

    def refuse(bad_T: BoolArray, what: str) -> None:
        if bad_T.any():
            position = int(np.argmax(bad_T))
            row = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
            offset = position - sum(lengths[:row])
            raise DataError(
                f"the teacher signal is wrong: {what}",
                where=f"key {keys[row]}, completion token {offset}",
                fix="this is a fault of the engine or of its adapter; nothing of this part was written",
            )

    refuse(np.any(~np.isfinite(logprobs_TK), axis=1), "a stored logprob is not finite")
    refuse(~np.isfinite(sampled_T), "the sampled token's logprob is not finite")
    refuse(np.isnan(tail_T), "the tail's logprob is NaN")
    refuse(np.any(ids_TK < 0, axis=1), "a token id is negative")
    refuse(np.any(np.diff(logprobs_TK, axis=1) > 0, axis=1), "logprobs are not sorted, best first")
    ordered_TK = np.sort(ids_TK, axis=1)
    refuse(np.any(np.diff(ordered_TK, axis=1) == 0, axis=1), "a token id stands twice at one position")
    mass_T = np.exp(logprobs_TK).sum(axis=1) + np.exp(tail_T)
    refuse(np.abs(mass_T - 1.0) > _MASS_TOLERANCE, "top-k mass and tail do not sum to 1")
    if all(token_ids is not None for _, _, token_ids in group):
        tokens_T = np.concatenate([np.asarray(token_ids, np.int32) for _, _, token_ids in group])
        refuse(
            _wrong_sampled(ids_TK, logprobs_TK, sampled_T, tokens_T),
            "the sampled token does not stand there with its own logprob",
        )


def _wrong_sampled(
    ids_TK: Int32Array, logprobs_TK: Float32Array, sampled_T: Float32Array, tokens_T: Int32Array
) -> BoolArray:
    tolerance_T = _ABSOLUTE_TOLERANCE + np.abs(sampled_T) * _RELATIVE_TOLERANCE
    found_TK = ids_TK == tokens_T[:, None]
    inside_T = found_TK.any(axis=1)
    own_T = np.where(found_TK, logprobs_TK, 0.0).sum(axis=1)
    limit_T = logprobs_TK[:, -1] if logprobs_TK.shape[1] else np.zeros_like(sampled_T)
    wrong_T = np.where(inside_T, np.abs(own_T - sampled_T) > tolerance_T, sampled_T > limit_T + tolerance_T)
    return np.asarray(wrong_T, dtype=np.bool_)
