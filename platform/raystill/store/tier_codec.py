"""Sampled and hidden signals to Arrow tables and back, with the checks that they pass before a write.

Shape letters: T completion tokens, D hidden size, E drawn ids of all positions, end to end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from raystill.errors import DataError
from raystill.store.codec import Array, list_arrays, lists_column
from raystill.store.records import Int32Array
from raystill.store.tier_records import (
    HIDDEN_SCHEMA,
    MAX_DRAWS,
    SAMPLED_SCHEMA,
    HiddenSignal,
    SampledSignal,
    TierKind,
    TierSignal,
)


def num_positions(signal: TierSignal) -> int:
    """T."""
    return len(signal.hidden_TD) if isinstance(signal, HiddenSignal) else len(signal.num_unique_T)


def tier_to_table(kind: TierKind, signals: Sequence[tuple[str, TierSignal]]) -> pa.Table:
    """(key, signal) pairs of one kind as a table of its schema. Raises DataError for a signal of another."""
    keys = pa.array([key for key, _ in signals], pa.string())
    if kind == "hidden":
        hidden = [signal for _, signal in signals if isinstance(signal, HiddenSignal)]
        _require_all(kind, len(hidden), len(signals))
        columns = [
            pa.array([signal.width for signal in hidden], pa.int32()),
            lists_column([signal.hidden_TD.reshape(-1) for signal in hidden], np.float16),
        ]
        return pa.table([keys, *columns], schema=HIDDEN_SCHEMA)
    sampled = [signal for _, signal in signals if isinstance(signal, SampledSignal)]
    _require_all(kind, len(sampled), len(signals))
    columns = [
        pa.array([signal.num_draws for signal in sampled], pa.int32()),
        lists_column([signal.num_unique_T for signal in sampled], np.int32),
        lists_column([signal.draw_ids_E for signal in sampled], np.int32),
        lists_column([signal.draw_counts_E for signal in sampled], np.uint16),
        lists_column([signal.sampled_logprob_T for signal in sampled], np.float32),
    ]
    return pa.table([keys, *columns], schema=SAMPLED_SCHEMA)


def list_tier_signals(kind: TierKind, table: pa.Table) -> list[TierSignal]:
    """One signal per row of a table of the kind's schema. Views, not copies. Raises DataError where lists
    don't fit each other."""
    if kind == "hidden":
        sizes = table.column("hidden_size").to_pylist()
        return [
            HiddenSignal(_reshape(flat, size))
            for size, flat in zip(sizes, list_arrays(table, "hidden"), strict=True)
        ]
    names = ("num_unique", "draw_ids", "draw_counts", "sampled_logprob")
    columns = [list_arrays(table, name) for name in names]
    draws = table.column("num_draws").to_pylist()
    return [SampledSignal(*values) for values in zip(draws, *columns, strict=True)]


def check_tier(
    signals: Sequence[tuple[str, TierSignal]], completion_token_ids: Mapping[str, Int32Array] | None = None
) -> None:
    """Raises DataError naming the key of the first signal that can't be right.

    One entry per completion token, where `completion_token_ids` says how many; draws that add up and stand
    in order; finite states, and none that is all zeros, which no norm gives.
    """
    for key, signal in signals:
        tokens = None if completion_token_ids is None else completion_token_ids.get(key)
        wrong = _wrong_hidden(signal) if isinstance(signal, HiddenSignal) else _wrong_sampled(signal)
        if tokens is not None and len(tokens) != num_positions(signal):
            wrong = f"it has {num_positions(signal)} positions for {len(tokens)} completion tokens"
        if wrong:
            raise DataError(
                f"the teacher signal is wrong: {wrong}",
                where=f"key {key}",
                fix="score the row again, or look for a fault in the engine",
            )


def tier_digest(key: str, signal: TierSignal) -> int:
    """A 256-bit digest of one signal."""
    digest = hashlib.sha256(key.encode("utf-8"))
    if isinstance(signal, HiddenSignal):
        parts: list[tuple[Array, str]] = [(signal.hidden_TD, "<f2")]
    else:
        parts = [
            (signal.num_unique_T, "<i4"),
            (signal.draw_ids_E, "<i4"),
            (signal.draw_counts_E, "<u2"),
            (signal.sampled_logprob_T, "<f4"),
        ]
    digest.update(signal.width.to_bytes(8, "little"))
    for values, kind in parts:
        digest.update(values.size.to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())
    return int.from_bytes(digest.digest(), "big")


def _wrong_sampled(signal: SampledSignal) -> str:
    if not 0 < signal.num_draws <= MAX_DRAWS:
        return f"{signal.num_draws} draws"
    if len(signal.num_unique_T) == 0:
        return ""
    if signal.num_unique_T.min() < 1 or (signal.draw_counts_E == 0).any():
        return "a position without draws, or an id that was never drawn"
    starts_T = np.concatenate([[0], np.cumsum(signal.num_unique_T)[:-1]])
    totals_T = np.add.reduceat(signal.draw_counts_E.astype(np.int64), starts_T)
    if (totals_T != signal.num_draws).any():
        return f"the counts of a token do not sum to {signal.num_draws}"
    rises_E = np.diff(signal.draw_ids_E) > 0
    rises_E[starts_T[1:] - 1] = True
    if not rises_E.all() or signal.draw_ids_E.min() < 0:
        return "the drawn ids of a token are not distinct and ascending"
    if not np.isfinite(signal.sampled_logprob_T).all() or (signal.sampled_logprob_T > 1e-3).any():
        return "a sampled token's logprob is not finite, or above 0"
    return ""


def _wrong_hidden(signal: HiddenSignal) -> str:
    if signal.width == 0:
        return "its size is 0"
    if not np.isfinite(signal.hidden_TD).all():
        return "a hidden state is not finite in float16"
    return "" if signal.hidden_TD.any(axis=1).all() else "a hidden state is all zeros"


def _require_all(kind: TierKind, found: int, wanted: int) -> None:
    if found != wanted:
        raise DataError(f"a part of {kind} signals holds signals of another kind")


def _reshape(flat: Array, size: int) -> Array:
    if size <= 0 or len(flat) % size:
        raise DataError(f"{len(flat)} numbers are no hidden states of size {size}")
    return flat.reshape(-1, size)
