"""The check that every signal passes before it is written, and again in `store verify`.

It catches what trains garbage silently: distributions shifted by a position, unnormalised logprobs, ids that
are not sorted with their logprobs, another row's signal. Shape letters: T completion tokens, K logprobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from raystill.errors import DataError
from raystill.store.precision import RELATIVE_ERROR
from raystill.store.records import Int32Array, Score, TeacherRow, TopKSignal

BoolArray = npt.NDArray[np.bool_]
KeyedSignal = tuple[str, TopKSignal, Int32Array | None]

# The sampled token's logprob and its entry in the top k are rounded alike: where the engine's two differ
# by a hair they may end one step apart. The absolute floor is for the engine's own rounding.
_RELATIVE_TOLERANCE = 2 * RELATIVE_ERROR
_ABSOLUTE_TOLERANCE = 2e-3
# Half a step of a kept logprob is 2^-6 down to -8, and what lies below is under a tenth of 256 tokens' mass:
# the sum is off by 1.6e-2 where all tokens are equally likely and err alike, and far less elsewhere.
_MASS_TOLERANCE = 2e-2


def check_rows(rows: Sequence[TeacherRow]) -> None:
    """Raises DataError naming the key and position of the first signal that contradicts its row."""
    check_signals([(row.key, row.signal, row.completion_token_ids) for row in rows if row.signal is not None])


def check_scores(scores: Sequence[Score], completion_token_ids: Mapping[str, Int32Array]) -> None:
    """Check scores against their own ids, or against the rows' `completion_token_ids` by key, where known."""
    check_signals(
        [
            (
                score.key,
                score.signal,
                completion_token_ids.get(score.key) if score.ids is None else score.ids.completion_token_ids,
            )
            for score in scores
        ]
    )


def check_sampled(signals: Sequence[KeyedSignal]) -> None:
    """Only the cheap part: is each completion token's own logprob where it should be?

    Tells a score of another completion under the same key, which is well-formed in itself.
    """
    for group in _by_width(signals):
        _Group(group).check_sampled()


def check_signals(signals: Sequence[KeyedSignal]) -> None:
    """Check (key, signal, completion_token_ids) triples; ids None leaves the sampled tokens unchecked."""
    for group in _by_width(signals):
        joined = _Group(group)
        joined.check_distributions()
        joined.check_sampled()


def _by_width(signals: Sequence[KeyedSignal]) -> list[list[KeyedSignal]]:
    """Groups that can be checked as one array: equal K, token ids for all or for none."""
    groups: dict[tuple[int, bool], list[KeyedSignal]] = {}
    for key, signal, token_ids in signals:
        T = len(signal.sampled_logprob_T)
        if token_ids is not None and len(token_ids) != T:
            raise DataError(
                f"the signal has {T} positions for {len(token_ids)} completion tokens", where=f"key {key}"
            )
        groups.setdefault((signal.num_logprobs, token_ids is None), []).append((key, signal, token_ids))
    return list(groups.values())


class _Group:
    """Signals of equal K, laid end to end; T runs over all their positions."""

    def __init__(self, group: list[KeyedSignal]) -> None:
        self._keys = [key for key, _, _ in group]
        self._ends = np.cumsum([len(signal.sampled_logprob_T) for _, signal, _ in group])
        self._ids_TK = np.concatenate([signal.topk_ids_TK for _, signal, _ in group])
        logprobs_TK = np.concatenate([signal.topk_logprobs_TK for _, signal, _ in group])
        self._logprobs_TK = logprobs_TK.astype(np.float32)
        self._sampled_T = np.concatenate([signal.sampled_logprob_T for _, signal, _ in group])
        self._tail_T = np.concatenate([signal.tail_logprob_T for _, signal, _ in group])
        tokens = [token_ids for _, _, token_ids in group if token_ids is not None]
        self._tokens_T = np.concatenate(tokens) if tokens else None

    def check_distributions(self) -> None:
        """Finite, sorted, distinct, summing to 1."""
        ids_TK, logprobs_TK = self._ids_TK, self._logprobs_TK
        self._refuse(np.any(~np.isfinite(logprobs_TK), axis=1), "a stored logprob is not finite")
        self._refuse(~np.isfinite(self._sampled_T), "the sampled token's logprob is not finite")
        self._refuse(np.isnan(self._tail_T), "the tail's logprob is NaN")
        self._refuse(np.any(ids_TK < 0, axis=1), "a token id is negative")
        self._refuse(np.any(np.diff(logprobs_TK, axis=1) > 0, axis=1), "logprobs are not sorted, best first")
        twice_TK = np.diff(np.sort(ids_TK, axis=1), axis=1) == 0
        self._refuse(np.any(twice_TK, axis=1), "a token id stands twice at one position")
        mass_T = np.exp(logprobs_TK).sum(axis=1) + np.exp(self._tail_T)
        self._refuse(np.abs(mass_T - 1.0) > _MASS_TOLERANCE, "top-k mass and tail do not sum to 1")

    def check_sampled(self) -> None:
        """The sampled token stands in the top k with its own logprob, or is no better than the k-th."""
        if self._tokens_T is None:
            return
        sampled_T, logprobs_TK = self._sampled_T, self._logprobs_TK
        tolerance_T = _ABSOLUTE_TOLERANCE + np.abs(sampled_T) * _RELATIVE_TOLERANCE
        found_TK = self._ids_TK == self._tokens_T[:, None]
        own_T = np.where(found_TK, logprobs_TK, 0.0).sum(axis=1)
        limit_T = logprobs_TK[:, -1] if logprobs_TK.shape[1] else np.zeros_like(sampled_T)
        wrong_T = np.where(
            np.any(found_TK, axis=1),
            np.abs(own_T - sampled_T) > tolerance_T,
            sampled_T > limit_T + tolerance_T,
        )
        self._refuse(wrong_T, "the sampled token does not stand there with its own logprob")

    def _refuse(self, bad_T: BoolArray, what: str) -> None:
        if not bad_T.any():
            return
        position = int(np.argmax(bad_T))
        row = int(np.searchsorted(self._ends, position, side="right"))
        offset = position - (int(self._ends[row - 1]) if row else 0)
        raise DataError(
            f"the teacher signal is wrong: {what}",
            where=f"key {self._keys[row]}, completion token {offset}",
            fix="a signal must come from its own completion: score the row again, or look for a fault in "
            "the engine",
        )
