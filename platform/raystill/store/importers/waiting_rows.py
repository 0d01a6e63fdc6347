"""Imported rows on their way into parts: in columns, by partition, until there is enough for parts that are
worth a file. Committed row by row a store would fall into millions of files.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raystill.store.codec import rows_to_table
from raystill.store.digest import row_digest
from raystill.store.identity import partition_of
from raystill.store.records import Reject, TeacherRow
from raystill.store.store import TeacherStore
from raystill.store.writer import Facts, PartWriter

WAITING_BYTES = 96 << 20
_REJECT_BYTES = 1000


@dataclass
class _Waiting:
    """One partition's rows, and what its commit says of them."""

    tables: list[pa.Table] = field(default_factory=list)
    digest_sum: int = 0
    num_tokens: int = 0
    cost_usd: float = 0.0
    rejects: list[Reject] = field(default_factory=list)


class WaitingRows:
    """Rows that were checked before, and are not in the store. Memory: `WAITING_BYTES`, and once more as much
    as one partition's while it is committed."""

    def __init__(self, store: TeacherStore, writer: PartWriter) -> None:
        self._store = store
        self._writer = writer
        self._partitions: dict[int, _Waiting] = defaultdict(_Waiting)
        self._num_bytes = 0

    def add(self, rows: Sequence[TeacherRow], rejects: Sequence[Reject]) -> None:
        """Take some; commits what waits where that is much."""
        for reject in rejects:
            self._of(reject.key).rejects.append(reject)
            self._num_bytes += _REJECT_BYTES + len(reject.reason)
        if rows:
            table = rows_to_table(rows)
            numbers = np.array([partition_of(row.key, self._store.num_partitions) for row in rows])
            for number in np.unique(numbers).tolist():
                places = np.flatnonzero(numbers == number)
                self._add_partition(number, table.take(pa.array(places)), [rows[place] for place in places])
        if self._num_bytes >= WAITING_BYTES:
            self.commit()

    def commit(self) -> None:
        """Commit everything, one part per partition and kind."""
        for partition, waiting in sorted(self._partitions.items()):
            if waiting.tables:
                facts = Facts(waiting.digest_sum, waiting.num_tokens, cost_usd=waiting.cost_usd)
                table = pa.concat_tables(waiting.tables).combine_chunks()
                self._writer.commit_table("rows", partition, table, facts)
                waiting.tables.clear()
            if waiting.rejects:
                self._writer.commit_rejects(partition, waiting.rejects)
        self._partitions.clear()
        self._num_bytes = 0

    def _add_partition(self, partition: int, table: pa.Table, rows: Sequence[TeacherRow]) -> None:
        waiting = self._partitions[partition]
        waiting.tables.append(table)
        waiting.digest_sum += sum(map(row_digest, rows))
        waiting.num_tokens += sum(len(row.completion_token_ids) for row in rows)
        waiting.cost_usd = math.fsum((waiting.cost_usd, *(row.cost_usd for row in rows)))
        self._num_bytes += table.nbytes

    def _of(self, key: str) -> _Waiting:
        return self._partitions[partition_of(key, self._store.num_partitions)]
