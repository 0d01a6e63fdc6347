"""Stored teacher signals of one row, and of all rows of a split as flat arrays.

Shape letters: T completion tokens of a row, S completion tokens of all rows, K stored logprobs, E drawn ids
of all tokens end to end, D the teacher's hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from raystill.store.records import Float16Array, Float32Array, Int32Array, TopKSignal
from raystill.store.signal_ids import fold_into_tail
from raystill.store.tier_records import HiddenSignal, SampledSignal, UInt16Array

StoredSignal = TopKSignal | SampledSignal | HiddenSignal
Int64Array = npt.NDArray[np.int64]
_Kind = TypeVar("_Kind", TopKSignal, SampledSignal, HiddenSignal)


@dataclass(frozen=True)
class TopKArrays:
    """Top-k signals, one token after the other."""

    ids_SK: Int32Array
    logprobs_SK: Float16Array
    tail_logprob_S: Float32Array


@dataclass(frozen=True)
class DrawArrays:
    """Draws: token s has `num_unique_S[s]` ids from place `starts_S[s]` of the flat arrays on. `shares_E` is
    each id's share of its token's draws."""

    num_unique_S: Int32Array
    starts_S: Int64Array
    ids_E: Int32Array
    shares_E: Float32Array


@dataclass(frozen=True)
class StateArrays:
    """The teacher's last hidden states."""

    hidden_SD: Float16Array


SignalArrays = TopKArrays | DrawArrays | StateArrays
_FORMS: tuple[type[SignalArrays], ...] = (TopKArrays, DrawArrays, StateArrays)


def flatten_signals(signals: Sequence[StoredSignal | None]) -> SignalArrays | None:
    """The signals of all rows, which are of one kind and width, or None where no row has one."""
    present = [signal for signal in signals if signal is not None]
    if not present:
        return None
    assert len(present) == len(signals), "rows with and without signals are mixed"
    if isinstance(present[0], SampledSignal):
        return _flatten_draws(_all_of(present, SampledSignal))
    if isinstance(present[0], HiddenSignal):
        return StateArrays(np.concatenate([signal.hidden_TD for signal in _all_of(present, HiddenSignal)]))
    topk = _all_of(present, TopKSignal)
    return TopKArrays(
        ids_SK=np.concatenate([signal.topk_ids_TK for signal in topk]),
        logprobs_SK=np.concatenate([signal.topk_logprobs_TK for signal in topk]),
        tail_logprob_S=np.concatenate([signal.tail_logprob_T for signal in topk]),
    )


def signals_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> SignalArrays | None:
    """The signals whose `vars` are `arrays`; None for no arrays."""
    for form in _FORMS:
        if arrays and arrays.keys() == form.__dataclass_fields__.keys():
            return form(**arrays)
    return None


def cut_signal(signal: StoredSignal, length: int) -> StoredSignal:
    """The signal of the first `length` tokens."""
    if isinstance(signal, HiddenSignal):
        return HiddenSignal(signal.hidden_TD[:length])
    if isinstance(signal, SampledSignal):
        entries = int(signal.num_unique_T[:length].sum())
        return SampledSignal(
            signal.num_draws,
            signal.num_unique_T[:length],
            signal.draw_ids_E[:entries],
            signal.draw_counts_E[:entries],
            signal.sampled_logprob_T[:length],
        )
    return TopKSignal(
        topk_ids_TK=signal.topk_ids_TK[:length],
        topk_logprobs_TK=signal.topk_logprobs_TK[:length],
        sampled_logprob_T=signal.sampled_logprob_T[:length],
        tail_logprob_T=signal.tail_logprob_T[:length],
    )


def fit_signal(signal: StoredSignal, vocab_size: int) -> StoredSignal:
    """The signal in a vocabulary of `vocab_size`: mass on other tokens (padding of the teacher's head) joins
    the tail. Hidden states have no ids: their logits are sliced later."""
    if isinstance(signal, TopKSignal):
        return fold_into_tail(signal, vocab_size)
    return _leave_out_draws(signal, vocab_size) if isinstance(signal, SampledSignal) else signal


def rename_ids(signal: StoredSignal, translated: Int32Array) -> StoredSignal:
    """The signal with other token ids, in the order of `ids_of`."""
    if isinstance(signal, TopKSignal):
        return replace(signal, topk_ids_TK=translated)
    return replace(signal, draw_ids_E=translated) if isinstance(signal, SampledSignal) else signal


def ids_of(signal: StoredSignal) -> Int32Array:
    """Every token id in the signal."""
    if isinstance(signal, TopKSignal):
        return signal.topk_ids_TK
    return signal.draw_ids_E if isinstance(signal, SampledSignal) else np.zeros(0, np.int32)


def gather_draws(draws: DrawArrays, places: Int64Array) -> tuple[Int64Array, Float32Array]:
    """Ids and shares of the tokens at `places`, padded to the longest with id 0 and share 0. [N, U] each."""
    counts_N = draws.num_unique_S[places].astype(np.int64)
    columns_U = np.arange(max(int(counts_N.max(initial=0)), 1))
    is_drawn_NU = columns_U < counts_N[:, None]
    found = (draws.starts_S[places][:, None] + columns_U)[is_drawn_NU]
    ids_NU = np.zeros(is_drawn_NU.shape, dtype=np.int64)
    shares_NU = np.zeros(is_drawn_NU.shape, dtype=np.float32)
    ids_NU[is_drawn_NU], shares_NU[is_drawn_NU] = draws.ids_E[found], draws.shares_E[found]
    return ids_NU, shares_NU


def _leave_out_draws(signal: SampledSignal, vocab_size: int) -> SampledSignal:
    kept_E = signal.draw_ids_E < vocab_size
    if kept_E.all():
        return signal
    token_E = np.repeat(np.arange(len(signal.num_unique_T)), signal.num_unique_T)
    counts = np.bincount(token_E[kept_E], minlength=len(signal.num_unique_T))
    return replace(
        signal,
        num_unique_T=counts.astype(np.int32),
        draw_ids_E=signal.draw_ids_E[kept_E],
        draw_counts_E=signal.draw_counts_E[kept_E],
    )


def _flatten_draws(signals: Sequence[SampledSignal]) -> DrawArrays:
    num_unique_S: Int32Array = np.concatenate([signal.num_unique_T for signal in signals])
    ends_S = np.cumsum(num_unique_S.astype(np.int64))
    shares: list[Float32Array] = [_shares(signal.draw_counts_E, signal.num_draws) for signal in signals]
    return DrawArrays(
        num_unique_S=num_unique_S,
        starts_S=ends_S - num_unique_S,
        ids_E=np.concatenate([signal.draw_ids_E for signal in signals]),
        shares_E=np.concatenate(shares),
    )


def _shares(counts_E: UInt16Array, num_draws: int) -> Float32Array:
    shares: Float32Array = (counts_E / np.float32(num_draws)).astype(np.float32)
    return shares


def _all_of(signals: Sequence[StoredSignal], kind: type[_Kind]) -> list[_Kind]:
    found = [signal for signal in signals if isinstance(signal, kind)]
    assert len(found) == len(signals), "signals of several kinds are mixed"
    return found
