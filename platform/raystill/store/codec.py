"""Rows and signals to Arrow tables and back, without a Python object per token.

Shape letters: T completion tokens, K stored logprobs per token. A signal's T x K arrays are one flat list of
T*K entries per row; decoding is an offset look-up and a reshape of a view.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import groupby, pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystill.errors import DataError
from raystill.store.records import (
    REJECT_SCHEMA,
    ROW_FIELDS,
    ROW_SCHEMA,
    SCORE_SCHEMA,
    SIGNAL_FIELDS,
    Reject,
    Score,
    ScoredIds,
    TeacherRow,
    TopKSignal,
)

CODEC = "topk-int32-float16-v1"
ROW_COLUMNS: tuple[str, ...] = tuple(field.name for field in ROW_FIELDS)
# What a TeacherRow is made of, in the order of its attributes, the last of which is the signal.
_ROW_ATTRIBUTES: tuple[str, ...] = tuple(field.name for field in fields(TeacherRow))
DECODED_COLUMNS = _ROW_ATTRIBUTES[:-1]
_SIGNAL_ATTRIBUTES: tuple[str, ...] = tuple(field.name for field in fields(TopKSignal))
SIGNAL_COLUMNS: tuple[str, ...] = tuple(field.name for field in SIGNAL_FIELDS)
_MAX_LIST_ENTRIES = 2**31 - 1

Array = npt.NDArray[Any]
_Record = TypeVar("_Record", TeacherRow, TopKSignal)


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` as it is in new parts: numbers in lists are declared to be there, so that no reader looks for
    missing ones. Parts that were written without the declaration hold the same."""
    return pa.schema([field.with_type(_stored_type(field.type)) for field in schema])


def _stored_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) and pa.types.is_primitive(kind.value_type):
        return pa.list_(kind.value_field.with_nullable(False))
    return kind


def rows_to_table(rows: Sequence[TeacherRow]) -> pa.Table:
    """Rows as a table of ROW_SCHEMA. Raises DataError for text that is not valid Unicode."""
    columns: dict[str, pa.Array] = {
        name: _column(name, [getattr(row, name) for row in rows], ROW_SCHEMA.field(name).type)
        for name in ROW_COLUMNS
        if not name.endswith("token_ids") and not name.startswith("num_")
    }
    for name in ("prompt_token_ids", "completion_token_ids"):
        ids = [getattr(row, name) for row in rows]
        columns[name] = lists_column(ids, np.int32)
        columns["num_" + name.replace("_ids", "s")] = pa.array([len(each) for each in ids], pa.int32())
    columns |= _signal_columns([row.signal for row in rows])
    return pa.table([columns[field.name] for field in ROW_SCHEMA], schema=ROW_SCHEMA)


def scores_to_table(scores: Sequence[Score]) -> pa.Table:
    """Scores as a table of SCORE_SCHEMA."""
    columns = {"key": pa.array([score.key for score in scores], pa.string())}
    for name in ("prompt_token_ids", "completion_token_ids"):
        ids = [None if score.ids is None else getattr(score.ids, name) for score in scores]
        columns[name] = lists_column(ids, np.int32)
    columns |= _signal_columns([score.signal for score in scores])
    return pa.table([columns[field.name] for field in SCORE_SCHEMA], schema=SCORE_SCHEMA)


def rejects_to_table(rejects: Sequence[Reject]) -> pa.Table:
    """Rejects as a table of REJECT_SCHEMA."""
    columns = [
        _column(field.name, [getattr(reject, field.name) for reject in rejects], field.type)
        for field in REJECT_SCHEMA
    ]
    return pa.table(columns, schema=REJECT_SCHEMA)


def iter_table_rows(
    table: pa.Table, signals: Sequence[TopKSignal | None] | None = None
) -> Iterator[TeacherRow]:
    """Rows of a table that has all of DECODED_COLUMNS, with `signals` (one per row) attached.

    Without `signals` they come from the table, where it has SIGNAL_FIELDS. Arrays are read-only views into
    the table's buffers.
    """
    table = table.combine_chunks()
    if signals is None:
        with_signal = set(SIGNAL_COLUMNS) <= set(table.column_names)
        signals = list_signals(table) if with_signal else [None] * table.num_rows
    columns = (_row_values(table, name) for name in DECODED_COLUMNS)
    for values in zip(*columns, signals, strict=True):
        yield _make(TeacherRow, _ROW_ATTRIBUTES, values)


def iter_table_rejects(table: pa.Table) -> Iterator[Reject]:
    """Rejects of a table of REJECT_SCHEMA."""
    for record in table.to_pylist():
        yield Reject(**record)


def list_signals(table: pa.Table) -> list[TopKSignal | None]:
    """One signal per row of a table that has SIGNAL_FIELDS, None where a row has none. Views, not copies.

    Raises DataError where a row's lists don't have T*K and T entries.
    """
    counts = list_values(table, "num_logprobs")
    columns = [_flat_lists(table, name) for name in SIGNAL_COLUMNS[1:]]
    _check_lengths(counts, [offsets for offsets, _ in columns])
    starts_T = columns[2][0].tolist()
    signals: list[TopKSignal | None] = []
    for K, indices in groupby(range(len(counts)), counts.__getitem__):
        rows = list(indices)
        if K is None:
            signals += [None] * len(rows)
            continue
        # The arrays of neighbours of equal K are one block each; a row is a slice of it.
        first, T = starts_T[rows[0]], starts_T[rows[-1] + 1] - starts_T[rows[0]]
        blocks = [values[offsets[rows[0]] : offsets[rows[-1] + 1]] for offsets, values in columns]
        ids_TK, logprobs_TK = (block.reshape(T, K) for block in blocks[:2])
        sampled_T, tail_T = blocks[2:]
        for row in rows:
            own = slice(starts_T[row] - first, starts_T[row + 1] - first)
            arrays = (ids_TK[own], logprobs_TK[own], sampled_T[own], tail_T[own])
            signals.append(_make(TopKSignal, _SIGNAL_ATTRIBUTES, arrays))
    return signals


def _make(kind: type[_Record], names: Sequence[str], values: Sequence[Any]) -> _Record:
    """A record of values that were checked as columns. A frozen dataclass's own constructor would set them
    one by one through object.__setattr__, and check them again: half of the time that a short row takes."""
    record = object.__new__(kind)
    record.__dict__.update(zip(names, values, strict=True))
    return record


def _check_lengths(counts: Sequence[int | None], offsets: Sequence[Array]) -> None:
    widths = np.fromiter((K or 0 for K in counts), np.int64, len(counts))
    ids, logprobs, sampled, tail = (np.diff(each).astype(np.int64) for each in offsets)
    wrong = (ids != sampled * widths) | (logprobs != sampled * widths) | (tail != sampled)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"a signal has {ids[row]} ids, {logprobs[row]} logprobs and {tail[row]} tails "
            f"for {sampled[row]} x {widths[row]}"
        )


def list_scores(table: pa.Table) -> list[Score]:
    """The scores of a table of SCORE_SCHEMA. Views, not copies; raises like `list_signals`."""
    keys = table.column("key").to_pylist()
    has_ids = table.column("completion_token_ids").is_valid().to_pylist()
    prompts, completions = list_arrays(table, "prompt_token_ids"), list_arrays(table, "completion_token_ids")
    return [
        Score(key, signal, ScoredIds(prompts[index], completions[index]) if has_ids[index] else None)
        for index, (key, signal) in enumerate(zip(keys, list_signals(table), strict=True))
        if signal is not None
    ]


def list_arrays(table: pa.Table, name: str) -> list[Array]:
    """Each row's entries of list column `name`, as views; a missing list is empty."""
    offsets, values = _flat_lists(table, name)
    return [values[start:end] for start, end in pairwise(offsets.tolist())]


def list_values(table: pa.Table, name: str) -> list[Any]:
    """Column `name` as Python values, None where there is none: `to_pylist` without an Arrow object each."""
    column = _one_array(table, name)
    if column.null_count == len(column):
        return [None] * len(column)
    if pa.types.is_string(column.type) or (column.null_count == 0 and pa.types.is_primitive(column.type)):
        values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return values
    return list(column.to_pylist())


def _row_values(table: pa.Table, name: str) -> list[Any]:
    if name == "flags":
        lists = _one_array(table, name)
        return list(map(tuple, lists.to_pylist())) if len(lists.flatten()) else [()] * len(lists)
    return list_arrays(table, name) if name.endswith("token_ids") else list_values(table, name)


def _flat_lists(table: pa.Table, name: str) -> tuple[Array, Array]:
    """Where each list of column `name` starts, one more for the end; and all entries end to end."""
    lists = _one_array(table, name)
    if len(lists) == 0:
        return np.zeros(1, np.int32), np.empty(0, lists.type.value_type.to_pandas_dtype())
    return lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=True)


def _one_array(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def empty_signal(num_logprobs: int) -> TopKSignal:
    """The signal of a completion without tokens: T = 0."""
    none_T = np.empty(0, np.float32)
    shape = (0, num_logprobs)
    return TopKSignal(np.empty(shape, np.int32), np.empty(shape, np.float16), none_T, none_T)


def view_signal(signal: TopKSignal, num_logprobs: int) -> TopKSignal:
    """The same distributions with only the `num_logprobs` best tokens; what is dropped joins the tail.

    tail' = log(exp(tail) + sum of exp(dropped logprobs)), in float32 by logaddexp. Raises DataError when
    more is asked for than is stored.
    """
    K = signal.num_logprobs
    if num_logprobs == K:
        return signal
    if num_logprobs > K:
        raise DataError(
            f"{num_logprobs} logprobs per token are asked for, {K} are stored",
            fix="lower losses.num_logprobs, or raise teacher.signals.num_logprobs and run raystill score",
        )
    dropped_TD = signal.topk_logprobs_TK[:, num_logprobs:].astype(np.float32)
    peak_T = dropped_TD[:, 0]  # best first, so the first dropped entry is the largest
    dropped_T = peak_T + np.log(np.exp(dropped_TD - peak_T[:, None]).sum(axis=1, dtype=np.float32))
    return TopKSignal(
        topk_ids_TK=signal.topk_ids_TK[:, :num_logprobs],
        topk_logprobs_TK=signal.topk_logprobs_TK[:, :num_logprobs],
        sampled_logprob_T=signal.sampled_logprob_T,
        tail_logprob_T=np.logaddexp(signal.tail_logprob_T, dropped_T).astype(np.float32),
    )


def _signal_columns(signals: Sequence[TopKSignal | None]) -> dict[str, pa.Array]:
    def flat(take: Callable[[TopKSignal], Array]) -> list[Array | None]:
        return [None if signal is None else take(signal).reshape(-1) for signal in signals]

    counts = [None if signal is None else signal.num_logprobs for signal in signals]
    return {
        "num_logprobs": pa.array(counts, pa.int32()),
        "topk_ids": lists_column(flat(lambda signal: signal.topk_ids_TK), np.int32),
        "topk_logprobs": lists_column(flat(lambda signal: signal.topk_logprobs_TK), np.float16),
        "sampled_logprob": lists_column(flat(lambda signal: signal.sampled_logprob_T), np.float32),
        "tail_logprob": lists_column(flat(lambda signal: signal.tail_logprob_T), np.float32),
    }


def lists_column(arrays: Sequence[Array | None], dtype: type[np.generic]) -> pa.Array:
    """One list per row, None where there is none. Raises DataError beyond what one Arrow column holds."""
    lengths = np.fromiter((0 if each is None else len(each) for each in arrays), np.int64, len(arrays))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    if offsets[-1] > _MAX_LIST_ENTRIES:
        raise DataError(
            f"one column of a part would hold {offsets[-1]:,} entries, {_MAX_LIST_ENTRIES:,} is the limit",
            fix="lower teacher.store.rows_per_part",
        )
    present = [np.asarray(each, dtype=dtype) for each in arrays if each is not None]
    values = np.concatenate(present) if present else np.empty(0, dtype)
    missing = np.fromiter((each is None for each in arrays), np.bool_, len(arrays))
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)),
        pa.array(values),
        mask=pa.array(missing) if missing.any() else None,
    )


def _column(name: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError as error:
        raise DataError(
            f"column {name} holds text that is not valid Unicode: {error.reason}",
            where=json.dumps(error.object[max(0, error.start - 20) : error.end + 20]),
            fix="repair the source text; a lone surrogate can't be stored as UTF-8",
        ) from error
