"""How many bytes per completion token a kind of signal takes in a store, as the real writer writes it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.store.codec import SIGNAL_COLUMNS, view_signal
from raystill.store.reader import iter_rows
from raystill.store.records import TeacherRow
from raystill.store.requests import load_request_keys
from raystill.store.store import TeacherStore, load_store, open_store
from raystill.store.tier_reader import load_sampled
from raystill.store.writer import PartWriter

_NUM_ROWS = 1000


def bytes_per_token(
    config: Config, paths: RunPaths, signal: Literal["topk", "sampled", "none"], num_logprobs: int
) -> float:
    """Compressed bytes of the signal columns per token, over a sample of the run's training rows.

    A narrower view is written anew at its own width. 0 where nothing is read.
    """
    if signal == "none":
        return 0.0
    store = load_store(paths.store)
    keys = load_request_keys(paths.requests, "train")
    rows = list(islice(iter_rows(store, keys=keys, with_signal=True), _NUM_ROWS))
    with tempfile.TemporaryDirectory(prefix="raystill-bytes-") as scratch:
        copy = open_store(Path(scratch) / "store", store.identity, 1)
        with PartWriter(copy) as writer:
            if signal == "topk":
                writer.commit_rows(0, [_narrowed(row, num_logprobs) for row in rows])
            else:
                draws = load_sampled(store, {row.key for row in rows}, config.teacher.signals.num_draws)
                writer.commit_tier(
                    0, "sampled", [(row.key, draws[row.key]) for row in rows],
                    completion_token_ids={row.key: row.completion_token_ids for row in rows},
                )  # fmt: skip
        return sum(_signal_bytes(copy)) / sum(len(row.completion_token_ids) for row in rows)


def _narrowed(row: TeacherRow, num_logprobs: int) -> TeacherRow:
    return row if row.signal is None else replace(row, signal=view_signal(row.signal, num_logprobs))


def _signal_bytes(store: TeacherStore) -> Iterator[int]:
    names = {*SIGNAL_COLUMNS, "num_draws", "num_unique", "draw_ids", "draw_counts"}
    for path in sorted(store.path.rglob("*.parquet")):
        metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                if chunk.path_in_schema.split(".")[0] in names:
                    yield chunk.total_compressed_size
