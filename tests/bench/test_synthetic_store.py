"""Synthetic stores are stores: their columns, digests and request tables are what the real writer gives."""

from __future__ import annotations

from pathlib import Path

from raystill.bench.synthetic_store import (
    SyntheticShape,
    build_synthetic_store,
    synthetic_keys,
    synthetic_rows,
    synthetic_table,
)
from raystill.store.codec import rows_to_table
from raystill.store.pending import count_requests, iter_pending
from raystill.store.verify import verify_store


def test_columns_equal_rows() -> None:
    keys = synthetic_keys(1, 4, 50)
    assert synthetic_table(keys).equals(rows_to_table(list(synthetic_rows(keys))))


def test_a_synthetic_store_is_whole_and_its_tables_fit(tmp_path: Path) -> None:
    shape = SyntheticShape(1001, num_partitions=3, rows_per_part=100, num_extra=10)
    store, exact, larger = build_synthetic_store(tmp_path, shape)
    assert not verify_store(store.path).damaged
    assert count_requests(store, exact).pending == 0
    assert count_requests(store, exact).stored == 1001
    assert sum(table.num_rows for _, table in iter_pending(store, larger)) == 10
