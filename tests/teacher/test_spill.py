"""Rows through the spill: each partition's own, in ascending ranges of keys, the first of equal keys."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.store.identity import partition_of
from raystill.teacher import spill
from raystill.teacher.spill import PartitionSpill

SCHEMA = pa.schema([("key", pa.string()), ("number", pa.int64()), ("ids", pa.list_(pa.int32()))])


def table_of(keys: list[str], start: int) -> pa.Table:
    rows = [{"key": key, "number": start + place, "ids": [place] * 3} for place, key in enumerate(keys)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@given(
    st.integers(1, 9),
    st.lists(st.integers(0, 40), max_size=60),
    st.integers(1, 7),
    st.integers(0, 4000),
    st.randoms(),
)
@settings(deadline=None, max_examples=40)
def test_what_goes_in_comes_out_by_partition(
    num_partitions: int, numbers: list[int], batch: int, limit: int, rng: random.Random
) -> None:
    import tempfile

    names = [f"{random.Random(number).getrandbits(128):032x}" for number in numbers]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(spill, "_BUFFER_BYTES", limit)
        patch.setattr(spill, "_RANGE_BYTES", rng.choice([1, 300, 1 << 20]))
        spilled = PartitionSpill(Path(directory), SCHEMA, num_partitions)
        for start in range(0, len(names), batch):
            spilled.add(table_of(names[start : start + batch], start))
        pieces = list(spilled.iter_partitions())
    assert [partition for partition, _ in pieces] == sorted(partition for partition, _ in pieces)
    found = [(row["key"], row["number"]) for _, piece in pieces for row in piece.to_pylist()]
    assert sorted(found) == sorted((name, names.index(name)) for name in set(names))
    for partition, piece in pieces:
        assert {partition_of(key, num_partitions) for key in piece["key"].to_pylist()} == {partition}
    highest = ""
    for _, piece in pieces:
        keys = sorted(piece["key"].to_pylist())
        assert highest < keys[0]
        highest = keys[-1]
