"""The storage benchmark: what its bytes and errors count, and a tiny run on the demo's teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystill.bench.storage import Sizes, codecs, column_bytes, mean_kl, measure
from raystill.bench.synthetic_signals import draw_topk
from raystill.store.records import TopKSignal


def _exact(seed: int) -> TopKSignal:
    drawn = draw_topk(seed, 50, 20)
    tail_T = drawn.tail_logprob_T.astype(np.float32)
    return TopKSignal(drawn.ids_TK, drawn.logprobs_TK, tail_T, tail_T)


def test_more_bits_err_less() -> None:
    exact = [_exact(seed) for seed in range(3)]
    ours, (bfloat, polynomial) = mean_kl(exact, None), codecs(151_936).values()
    assert 0.0 <= ours < 1e-5
    assert ours < mean_kl(exact, bfloat) < mean_kl(exact, polynomial)


def test_only_the_named_columns_count(tmp_path: Path) -> None:
    noise = pa.array(np.random.default_rng(0).random(1000))
    pq.write_table(pa.table({"a": noise, "b": pa.array([list(range(9))] * 1000)}), tmp_path / "x.parquet")
    metadata = pq.read_metadata(tmp_path / "x.parquet").row_group(0)
    sizes = [metadata.column(index).total_compressed_size for index in range(2)]
    assert column_bytes([tmp_path / "x.parquet"], ("a",)) == sizes[0]
    assert column_bytes([tmp_path / "x.parquet"] * 2, ("b",)) == 2 * sizes[1]


def test_a_tiny_run_on_the_demos_teacher() -> None:
    sizes = Sizes({"tiny": 6}, max_new_tokens=8, copies=2, rounds=1, exact_rows=2)
    found = {(row.case, row.metric, row.peer_name): row for row in measure(sizes)}
    assert len(found) == 7
    row = found["tiny, top-20", "bytes/token", "DistillKit, all exact"]
    assert row.ratio is not None and row.peer is not None
    assert row.ratio == pytest.approx(row.peer / row.ours)
    assert found["tiny, top-20, read back", "tokens/s", ""].ours > 0.0
