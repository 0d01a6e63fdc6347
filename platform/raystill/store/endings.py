"""How the rows of a run ended: which completions the token limit cut off."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc

from raystill.store.pending import iter_requested
from raystill.store.store import TeacherStore

CUT_OFF = "length"


def find_cut_off(store: TeacherStore, requests: Path) -> frozenset[str]:
    """Keys of the run's stored completions that ended at the token limit instead of by themselves.

    Memory: one part, and the keys that are found. Raises DataError where a part or the table can't be read.
    """
    found: set[str] = set()
    for table in iter_requested(store, requests, ("key", "finish_reason")):
        is_cut = pc.equal(table.column("finish_reason"), CUT_OFF)
        found.update(table.column("key").filter(is_cut).to_pylist())
    return frozenset(found)
