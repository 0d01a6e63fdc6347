"""Bytes and time per token of stored signals of real models, and DistillKit's codec on the same ones.

Signals are captured by the transformers engine from the demo's prompts: by the demo's teacher, and by a
random model of about 60 M parameters, whose token ids nothing can predict. Bytes are those of the columns
that hold the distributions, in parts of the usual size; DistillKit's are those of its two columns in the
dataset that our exporter writes, prompt positions included, as its format has them. The codec's forms at
equal k: all logprobs exact in bfloat16, as it recommends, and eight exact ones with a polynomial for the
rest. KL errors are KL(float32 || stored) over the k, on a forward pass of the same rows. Writing has all
that a run's commit has; reading is the real reader with signals; both on one thread. Ratios of bytes and
errors are the peer's over ours.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from raystill.bench.captured_rows import Captured, capture_rows, exact_signals
from raystill.bench.result import BenchRow, bench_result
from raystill.bench.teachers import Model, place_teacher
from raystill.store.codec import SIGNAL_COLUMNS
from raystill.store.distillkit_codec import (
    CompressionConfig,
    decode_logprobs,
    default_config,
    encode_logprobs,
)
from raystill.store.exporters.distillkit import export_distillkit
from raystill.store.identity import request_key
from raystill.store.precision import keep_signal
from raystill.store.reader import iter_rows
from raystill.store.records import TopKSignal
from raystill.store.store import TeacherStore, open_store
from raystill.store.writer import PartWriter

BYTES_GOAL, READ_GOAL = 60.0, 1e6
_NUM_LOGPROBS = 20
_ROWS_PER_PART = 256
_MAX_NEW_TOKENS = 64
_DISTILLKIT_COLUMNS = ("compressed_logprobs", "bytepacked_indices")
_RECORDED = "recorded"


@dataclass(frozen=True)
class Sizes:
    """How much is captured. The rows are committed `copies` times under other keys for the timed store."""

    prompts: dict[Model, int]
    max_new_tokens: int
    copies: int
    rounds: int
    exact_rows: int


FULL = Sizes({"tiny": 1024, "60M": 256}, _MAX_NEW_TOKENS, copies=16, rounds=5, exact_rows=128)
QUICK = Sizes({"tiny": 256, "60M": 32}, 32, copies=8, rounds=3, exact_rows=16)


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Capture, then measure, one model after the other. `quick`: fewer and shorter rows and rounds."""
    return bench_result("storage", measure(QUICK if quick else FULL))


def measure(sizes: Sizes) -> list[BenchRow]:
    """The benchmark's rows for every model of `sizes`."""
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        for model, num_prompts in sizes.prompts.items():
            place = Path(scratch) / model
            directory = place_teacher(model, place / "teacher")
            captured = capture_rows(directory, num_prompts, sizes.max_new_tokens, _NUM_LOGPROBS)
            case = f"{model}, top-{_NUM_LOGPROBS}"
            rows += _bytes_rows(case, captured, place)
            exact = exact_signals(directory, captured.rows[: sizes.exact_rows], _NUM_LOGPROBS)
            rows += _error_rows(case, exact, captured.vocab_size)
            rows += _speed_rows(case, captured, place, sizes)
    return rows


def codecs(vocab_size: int) -> dict[str, CompressionConfig]:
    """The forms of DistillKit's codec at our k, by name."""
    exact = default_config(_NUM_LOGPROBS, vocab_size).model_copy(update={"exact_dtype": "bfloat16"})
    polynomial = CompressionConfig(
        d=vocab_size,
        k=_NUM_LOGPROBS,
        exact_k=8,
        exact_dtype="bfloat16",
        polynomial_terms=(0, 1, 2, "sqrt"),
        delta_encoding=False,
    )
    return {"DistillKit, all exact": exact, "DistillKit, 8 exact and polynomial": polynomial}


def mean_kl(exact: Iterable[TopKSignal], codec: CompressionConfig | None) -> float:
    """KL(exact || decoded) over the k tokens alone, in nats per token; `codec` None is what we keep.

    Both are normalised over the k: DistillKit stores no tail, and what rounding leaves of it isn't judged.
    """
    kl_T: list[npt.NDArray[np.float64]] = []
    for signal in exact:
        values_TK = signal.topk_logprobs_TK.astype(np.float64)
        if codec is None:
            kept = keep_signal(signal.topk_ids_TK, values_TK, signal.sampled_logprob_T, signal.tail_logprob_T)
            decoded_TK = kept.topk_logprobs_TK.astype(np.float64)
        else:
            decoded_TK = decode_logprobs(encode_logprobs(values_TK, codec), codec)
        values_TK, decoded_TK = _normalised(values_TK), _normalised(decoded_TK)
        kl_T.append((np.exp(values_TK) * (values_TK - decoded_TK)).sum(axis=1))
    return float(np.concatenate(kl_T).mean())


def _normalised(logprobs_TK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    normalised_TK: npt.NDArray[np.float64] = logprobs_TK - np.log(np.exp(logprobs_TK).sum(axis=1))[:, None]
    return normalised_TK


def column_bytes(paths: Iterable[Path], names: Collection[str]) -> int:
    """Compressed bytes of the columns `names` in all Parquet files."""
    total = 0
    for path in paths:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                if column.path_in_schema.partition(".")[0] in names:
                    total += column.total_compressed_size
    return total


def commit_copies(store: TeacherStore, captured: Captured, copies: int) -> None:
    """Commit the rows `copies` times, each time under other keys and in parts of their own."""
    with PartWriter(store) as writer:
        for copy in range(copies):
            for start in range(0, len(captured.rows), _ROWS_PER_PART):
                chunk = captured.rows[start : start + _ROWS_PER_PART]
                rows = [
                    replace(row, key=request_key(captured.identity, row.key, {}, seed=copy)) for row in chunk
                ]
                writer.commit_rows(0, rows)


def _bytes_rows(case: str, captured: Captured, place: Path) -> list[BenchRow]:
    store = open_store(place / "store", captured.identity, 1)
    commit_copies(store, captured, 1)
    parts = sorted((store.path / "partitions").glob("*/*.parquet"))
    num_tokens = captured.num_tokens
    ours = column_bytes(parts, SIGNAL_COLUMNS) / num_tokens
    whole = sum(part.stat().st_size for part in parts) / num_tokens
    goal, met = f"<= {BYTES_GOAL:g}", ours <= BYTES_GOAL
    rows = []
    for number, (name, codec) in enumerate(codecs(captured.vocab_size).items()):
        target = place / f"distillkit-{number}"
        export_distillkit(store, target, config=codec)
        peer = column_bytes(target.glob("*.parquet"), _DISTILLKIT_COLUMNS) / num_tokens
        rows.append(BenchRow(case, "bytes/token", ours, peer, name, peer / ours, goal, met))
    text = BenchRow(f"{case}, with text and ids", "bytes/token", whole, None, "", None, _RECORDED, True)
    return [*rows, text]


def _error_rows(case: str, exact: list[TopKSignal], vocab_size: int) -> list[BenchRow]:
    ours = mean_kl(exact, None)
    rows = []
    for name, codec in codecs(vocab_size).items():
        peer = mean_kl(exact, codec)
        ratio = peer / ours if ours else None
        rows.append(BenchRow(case, "KL error, nats", ours, peer, name, ratio, "<= peer", ours <= peer))
    return rows


def _speed_rows(case: str, captured: Captured, place: Path, sizes: Sizes) -> list[BenchRow]:
    num_tokens = captured.num_tokens * sizes.copies
    writes, reads = [], []
    for round_number in range(sizes.rounds):
        store = open_store(place / f"timed-{round_number}", captured.identity, 1)
        started = time.perf_counter()
        commit_copies(store, captured, sizes.copies)
        written = time.perf_counter()
        found = sum(len(row.completion_token_ids) for row in iter_rows(store, with_signal=True))
        writes.append(num_tokens / (written - started))
        reads.append(found / (time.perf_counter() - written))
    write, read = statistics.median(writes), statistics.median(reads)
    goal = f">= {READ_GOAL:,.0f}"
    return [
        BenchRow(f"{case}, written", "tokens/s", write, None, "", None, _RECORDED, True),
        BenchRow(f"{case}, read back", "tokens/s", read, None, "", None, goal, read >= READ_GOAL),
    ]
