"""A store as a DistillKit dataset: a directory with its Parquet columns and `compression_config.yaml`.

The codec is lossy where it fits polynomials, so the loss is measured on what was written. Prompt positions
have no distribution in a store: their entries hold no probability, and `labels` is -100 there.
Shape letters: T completion tokens, K stored logprobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from raystill.errors import ConfigError, DataError
from raystill.run.publish import publish_directory
from raystill.store.distillkit_codec import (
    CONFIG_NAME,
    CompressionConfig,
    decode_logprobs,
    default_config,
    encode_logprobs,
    pack_bits,
)
from raystill.store.exporters.rows import iter_sorted_rows
from raystill.store.reader import iter_tables
from raystill.store.records import TeacherRow, TopKSignal
from raystill.store.store import TeacherStore

_BYTES = pa.list_(pa.list_(pa.uint8()))
SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.uint64())),
        pa.field("compressed_logprobs", _BYTES),
        pa.field("bytepacked_indices", _BYTES),
        pa.field("labels", pa.list_(pa.int64())),
    ]
)
# A logprob that is no probability in any arithmetic, and that every exact dtype can hold.
_NOTHING = -100.0
_BATCH_ROWS = 64


@dataclass
class CodecLoss:
    """What the codec cost. KL(stored || decoded) in nats per token, over top k and tail."""

    num_rows: int = 0
    num_tokens: int = 0
    kl_mean: float = 0.0
    kl_max: float = 0.0
    max_abs_error: float = 0.0
    bytes_per_token: float = 0.0


def export_distillkit(
    store: TeacherStore,
    path: Path,
    *,
    vocab_size: int | None = None,
    config: CompressionConfig | None = None,
) -> CodecLoss:
    """Write the dataset to the directory `path`, atomically; returns what the codec lost.

    `config` None: `default_config` for the store's number of logprobs and `vocab_size` (unset: the largest
    token id plus one). Rows without tokens are left out. Raises DataError where a row has no signal or fewer
    logprobs than `config.k`; ConfigError where a token id is beyond `config.d`.
    """
    largest = _largest_id(store)
    if config is None:
        num_logprobs = store.identity.num_logprobs
        if not num_logprobs:
            raise DataError(
                "the store has no logprobs", where=str(store.path), fix="run raystill score first"
            )
        config = default_config(num_logprobs, max(vocab_size or largest + 1, num_logprobs))
    if largest >= config.d:
        raise ConfigError(
            f"the store holds token id {largest}, the codec's vocabulary has {config.d}",
            where="--vocab-size",
            fix=f"set it to at least {largest + 1}",
        )
    loss = CodecLoss()
    with publish_directory(path) as temporary:
        target = temporary / "data_0.parquet"
        with pq.ParquetWriter(target, SCHEMA, compression="zstd") as writer:
            batch: list[dict[str, pa.Array]] = []
            for row in iter_sorted_rows(store, with_signal=True, num_logprobs=config.k):
                if row.signal is None or not len(row.completion_token_ids) or not len(row.prompt_token_ids):
                    continue
                batch.append(_columns(row, row.signal, config, loss))
                if len(batch) == _BATCH_ROWS:
                    writer.write_table(_table(batch))
                    batch = []
            if batch:
                writer.write_table(_table(batch))
        if loss.num_tokens:
            loss.kl_mean /= loss.num_tokens
            loss.bytes_per_token = target.stat().st_size / loss.num_tokens
        facts = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        (temporary / CONFIG_NAME).write_text(facts, encoding="utf-8")
    return loss


def compute_codec_kl(signal: TopKSignal, decoded_TK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """KL(stored || decoded) per token, in nats; the mass outside the top k is one more outcome.

    Decoded masses above 1 are scaled to 1, as our importer does.
    """
    stored_TK = signal.topk_logprobs_TK.astype(np.float64)
    mass_T = np.exp(decoded_TK).sum(axis=1)
    decoded_TK = decoded_TK - np.log(np.maximum(mass_T, 1.0))[:, None]
    tail_T = np.exp(signal.tail_logprob_T.astype(np.float64))
    tiny = np.finfo(np.float64).tiny
    left_T = np.maximum(1.0 - np.exp(decoded_TK).sum(axis=1), tiny)
    # The stored mass is 1 up to float16's rounding: the same share is compared on both sides.
    kl_T: npt.NDArray[np.float64] = (np.exp(stored_TK) * (stored_TK - decoded_TK)).sum(axis=1)
    kl_T += np.where(tail_T > 1e-6, tail_T * np.log(np.maximum(tail_T, tiny) / left_T), 0.0)
    return kl_T


def _columns(
    row: TeacherRow, signal: TopKSignal, config: CompressionConfig, loss: CodecLoss
) -> dict[str, pa.Array]:
    num_before = len(row.prompt_token_ids) - 1
    filler_ids = np.tile(np.arange(config.k, dtype=np.int64), (num_before, 1))
    ids_TK = np.concatenate([filler_ids, signal.topk_ids_TK.astype(np.int64)])
    filler = np.full((num_before, config.k), _NOTHING)
    values_TK = np.concatenate([filler, signal.topk_logprobs_TK.astype(np.float64)])
    packed = encode_logprobs(values_TK, config)
    _measure(signal, decode_logprobs(packed[num_before:], config), loss)
    tokens = np.concatenate([row.prompt_token_ids, row.completion_token_ids])
    labels = tokens.astype(np.int64)
    labels[: len(row.prompt_token_ids)] = -100
    return {
        "input_ids": pa.array(tokens.astype(np.uint64)),
        "compressed_logprobs": _byte_lists(packed),
        "bytepacked_indices": _byte_lists(pack_bits(ids_TK, config.index_bits)),
        "labels": pa.array(labels),
    }


def _measure(signal: TopKSignal, decoded_TK: npt.NDArray[np.float64], loss: CodecLoss) -> None:
    kl_T = compute_codec_kl(signal, decoded_TK)
    error = np.abs(decoded_TK - signal.topk_logprobs_TK.astype(np.float64)).max(initial=0.0)
    loss.num_rows += 1
    loss.num_tokens += len(kl_T)
    loss.kl_mean += float(kl_T.sum())
    loss.kl_max = max(loss.kl_max, float(kl_T.max(initial=0.0)))
    loss.max_abs_error = max(loss.max_abs_error, float(error))


def _byte_lists(packed: npt.NDArray[np.uint8]) -> pa.Array:
    offsets = np.arange(len(packed) + 1, dtype=np.int32) * packed.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(packed.reshape(-1)))


def _table(rows: list[dict[str, pa.Array]]) -> pa.Table:
    columns: list[Any] = []
    for field in SCHEMA:
        arrays = [row[field.name] for row in rows]
        ends = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
        columns.append(pa.ListArray.from_arrays(pa.array(ends), pa.concat_arrays(arrays), type=field.type))
    return pa.table(columns, schema=SCHEMA)


def _largest_id(store: TeacherStore) -> int:
    largest = 0
    for kind, names in (
        ("rows", ("prompt_token_ids", "completion_token_ids", "topk_ids")),
        ("scores", ("topk_ids",)),
    ):
        for table in iter_tables(store, kind="rows" if kind == "rows" else "scores", columns=names):
            for name in names:
                found = pc.max(pc.list_flatten(table.column(name))).as_py()
                largest = max(largest, found or 0)
    return largest
