"""DistillKit's Parquet: `input_ids`, `compressed_logprobs`, `bytepacked_indices`, decoded by its codec.

Entry j is the distribution of `input_ids[j + 1]`; the last token's may be missing. A row says nothing about
where its completion starts unless it has `labels` (-100 on the prompt): without them everything after the
first token is the completion. Shape letters: T completion tokens, K stored logprobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raystill.errors import DataError
from raystill.store.codec import list_arrays
from raystill.store.distillkit_codec import (
    CONFIG_NAME,
    ByteArray,
    CompressionConfig,
    decode_logprobs,
    load_compression_config,
    unpack_bits,
)
from raystill.store.importers.answer import BadAnswer, ImportedAnswer, RowError
from raystill.store.importers.conversation import list_of_ids
from raystill.store.importers.files import excerpt, iter_parquet_batches
from raystill.store.importers.signal import BOUND_FLAG, build_signal
from raystill.store.records import Int32Array
from raystill.text.chat import ChatFormat

COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
# Rows of a store come from conversations; here only their token ids are known.
IDS_ONLY_FLAG = "ids_only"
# A polynomial may lift the tail a little above what the top k leave; more than this is a wrong codec.
_CODEC_MASS_TOLERANCE = 0.05
_NO_LABEL = -100


def find_compression_config(paths: Sequence[Path], given: Path | None) -> CompressionConfig:
    """The codec's parameters: `given`, or the file beside the Parquet files. Raises DataError without."""
    return load_compression_config(given if given is not None else paths[0].parent / CONFIG_NAME)


def iter_distillkit(
    paths: Sequence[Path], config: CompressionConfig, chat: ChatFormat | None
) -> Iterator[ImportedAnswer | BadAnswer]:
    """One answer per row. Raises DataError for a file that can't be read or is of DistillKit's old format."""
    for path in paths:
        number = 0
        for batch in iter_parquet_batches(path):
            table = pa.Table.from_batches([batch])
            _check_columns(table, path)
            columns = [list_arrays(table, name) for name in COLUMNS[:1]]
            nested = [table.column(name).combine_chunks() for name in COLUMNS[1:]]
            labels = table.column("labels").to_pylist() if "labels" in table.column_names else None
            for index in range(table.num_rows):
                where = f"{path.name}[{number}]"
                number += 1
                try:
                    packed = [
                        _matrix(column[index], name) for column, name in zip(nested, COLUMNS[1:], strict=True)
                    ]
                    ids = list_of_ids(columns[0][index], "input_ids")
                    yield _read_row(
                        where, ids, packed, None if labels is None else labels[index], config, chat
                    )
                except RowError as error:
                    yield BadAnswer(
                        where, error.code, error.reason, excerpt(table.slice(index, 1).to_pylist())
                    )


def _read_row(
    where: str,
    input_ids: Int32Array,
    packed: list[ByteArray],
    labels: list[int] | None,
    config: CompressionConfig,
    chat: ChatFormat | None,
) -> ImportedAnswer:
    values_TB, indices_TB = packed
    if len(values_TB) != len(indices_TB) or not len(input_ids) - 1 <= len(values_TB) <= len(input_ids):
        raise RowError(
            "misaligned",
            f"{len(values_TB)} logprobs and {len(indices_TB)} indices for {len(input_ids)} tokens",
        )
    input_ids = _without_padding(input_ids, chat)
    start = 1 if labels is None else _completion_start(labels, len(input_ids))
    prompt, completion = input_ids[:start], input_ids[start:]
    if not len(prompt) or not len(completion):
        raise RowError("empty", "the row has no completion")
    used = slice(start - 1, len(input_ids) - 1)
    try:
        logprobs_TK = decode_logprobs(values_TB[used], config)
        ids_TK = unpack_bits(indices_TB[used], config.index_bits, config.k)
    except DataError as error:
        raise RowError("codec", error.problems[0].what) from None
    if (ids_TK >= config.d).any():
        raise RowError("codec", f"a token id is beyond the codec's vocabulary of {config.d}")
    signal, is_bound = build_signal(
        ids_TK.astype(np.int32), logprobs_TK, completion, mass_tolerance=_CODEC_MASS_TOLERANCE
    )
    ended = chat is not None and int(completion[-1]) in chat.eos_token_ids
    return ImportedAnswer(
        where=where,
        messages=[],
        completion="" if chat is None else chat.decode(completion.tolist()),
        prompt_token_ids=prompt,
        completion_token_ids=completion,
        finish_reason="unknown" if chat is None else ("stop" if ended else "length"),
        signal=signal,
        flags=(IDS_ONLY_FLAG, BOUND_FLAG) if is_bound else (IDS_ONLY_FLAG,),
    )


def _without_padding(input_ids: Int32Array, chat: ChatFormat | None) -> Int32Array:
    """Without the one pad token that DistillKit's capture appends to have the last token scored."""
    if chat is None or len(input_ids) < 2:
        return input_ids
    pad = chat.tokenizer.pad_token_id
    if pad is None or int(input_ids[-1]) != pad:
        return input_ids
    # Where the pad token is an EOS too, a last one that follows an EOS is the appended one.
    is_extra = pad not in chat.eos_token_ids or int(input_ids[-2]) in chat.eos_token_ids
    return input_ids[:-1] if is_extra else input_ids


def _completion_start(labels: list[int], num_tokens: int) -> int:
    """Where the completion starts. Raises RowError where labels are no single span at the end."""
    learnt = np.flatnonzero(np.asarray(labels[:num_tokens]) != _NO_LABEL)
    if not len(learnt):
        raise RowError("empty", "no token of the row has a label")
    if len(learnt) != num_tokens - int(learnt[0]):
        raise RowError("several_spans", "the row's labels are not one span at its end")
    return max(int(learnt[0]), 1)


def _matrix(scalar: Any, name: str) -> ByteArray:
    """A list of equally long byte lists as T x bytes, without a Python object per byte. Raises RowError."""
    if not scalar.is_valid:
        raise RowError("bad_bytes", f"`{name}` is missing")
    lists = scalar.values
    flat, offsets = lists.flatten(), np.diff(lists.offsets.to_numpy())
    if flat.null_count or len(set(offsets.tolist())) > 1:
        raise RowError("bad_bytes", f"`{name}` has positions of different lengths")
    values = flat.to_numpy(zero_copy_only=False)
    if len(values) and not (int(values.min()) >= 0 and int(values.max()) <= 255):
        raise RowError("bad_bytes", f"`{name}` holds numbers that are no bytes")
    return np.ascontiguousarray(values.astype(np.uint8).reshape(len(lists), -1) if len(lists) else values)


def _check_columns(table: pa.Table, path: Path) -> None:
    names = table.column_names
    if {"packed_indices", "exact_values", "coeffs"} <= set(names):
        raise DataError(
            "the file is of DistillKit's old format, whose values are centred logits cut to the top k: what "
            "would normalise them is not stored",
            where=str(path),
            fix="score the conversations again (raystill score), or convert the file with DistillKit",
        )
    for name in COLUMNS:
        if name not in names:
            raise DataError(
                f"the file has no column {name!r}, only {', '.join(names)}",
                where=str(path),
                fix="name the format that the file has",
            )
    for name in COLUMNS[1:]:
        kind = table.schema.field(name).type
        if not (pa.types.is_list(kind) and pa.types.is_list(kind.value_type)):
            raise DataError(f"column {name!r} is {kind}, not lists of bytes", where=str(path))
