"""The prompts that a list of requests was made of, by digest: what need not be rendered when prompts change.

Kept beside the list, sorted by digest. Where a run's prompts are added to, removed or reordered, those that
are found here keep their requests, and only the others are rendered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raystill.store.keys import Keys, pack_column
from raystill.store.requests import RequestTableWriter, request_note
from raystill.teacher.request_list import Origin
from raystill.teacher.spill import PartitionSpill
from raystill.text.prompt_digest import iter_prompt_digests

_NOTE = "raystill.plan"
_NAME = "prompts.parquet"
# A digest is as long and as random as a key, so it is cut into ranges like one.
_RANGES = 64
_PLACED_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("prompt_row", pa.int64())])
_SCHEMA = _PLACED_SCHEMA.append(pa.field("num_requests", pa.int32())).append(
    pa.field("has_schema", pa.bool_())
)
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Asked:
    """Of each of N prompts: how many requests it makes, and whether they are forced into a JSON Schema."""

    num_requests_N: Int32Array
    has_schema_N: BoolArray

    @classmethod
    def of_none(cls, num_prompts: int) -> Asked:
        """Nothing is known yet."""
        return cls(np.zeros(num_prompts, np.int32), np.zeros(num_prompts, np.bool_))


@dataclass(frozen=True)
class Matched:
    """`new_row_N` says of each of N listed prompts where it stands now, -1 where it doesn't; `asked` and
    `is_known_M` are of the M prompts now."""

    new_row_N: Int64Array
    is_known_M: BoolArray
    asked: Asked


class PromptDigests:
    """The digests of a prompt table, spilled by range. Memory: a buffer; reads the table once."""

    def __init__(self, prompt_table: Path, scratch: Path) -> None:
        self._spill = PartitionSpill(scratch, _PLACED_SCHEMA, _RANGES)
        self.num_prompts = 0
        for digests in iter_prompt_digests(prompt_table):
            rows = np.arange(self.num_prompts, self.num_prompts + len(digests))
            self._spill.add(pa.table([pa.array(digests), pa.array(rows)], schema=_PLACED_SCHEMA))
            self.num_prompts += len(digests)

    def save(self, list_path: Path, origin: Origin, asked: Asked) -> None:
        """Publish the prompts of the list at `list_path`, beside it."""
        with RequestTableWriter(list_path.with_name(_NAME), _SCHEMA) as writer:
            for _, placed in self._spill.iter_partitions():
                rows = placed.column("prompt_row").to_numpy()
                facts = [pa.array(asked.num_requests_N[rows]), pa.array(asked.has_schema_N[rows])]
                writer.add(pa.table([*placed.columns, *facts], schema=_SCHEMA))
            writer.note(_NOTE, origin.prompts)

    def match(self, list_path: Path, num_listed_N: Int32Array) -> Matched:
        """Find the prompts of the list at `list_path`, which holds `num_listed_N` requests of each of them.

        A prompt whose requests are listed as another's, which renders alike, is not found: it may have to
        take them over.
        """
        new_row_N = np.full(len(num_listed_N), -1, np.int64)
        is_known_M, asked = np.zeros(self.num_prompts, np.bool_), Asked.of_none(self.num_prompts)
        listed = _iter_ranges(list_path.with_name(_NAME))
        number, known = next(listed, (_RANGES, _SCHEMA.empty_table()))
        for wanted, placed in self._spill.iter_partitions():
            while number < wanted:
                number, known = next(listed, (_RANGES, _SCHEMA.empty_table()))
            if number != wanted:
                continue
            found = pc.index_in(placed.column("key"), known.column("key").combine_chunks())
            own = known.take(found.drop_null())
            rows_M = placed.column("prompt_row").to_numpy()[found.is_valid().to_numpy()]
            rows_N, counts = (own.column(name).to_numpy() for name in ("prompt_row", "num_requests"))
            is_whole = num_listed_N[rows_N] == counts
            rows_M, rows_N = rows_M[is_whole], rows_N[is_whole]
            new_row_N[rows_N], is_known_M[rows_M] = rows_M, True
            asked.num_requests_N[rows_M] = counts[is_whole]
            asked.has_schema_N[rows_M] = own.column("has_schema").to_numpy()[is_whole]
        return Matched(new_row_N, is_known_M, asked)


def has_prompts_of(list_path: Path, origin: Origin) -> bool:
    """Whether the prompts of the list of this origin are kept beside it, and can be read."""
    return request_note(list_path.with_name(_NAME), _NOTE) == origin.prompts


def _iter_ranges(path: Path) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each range of digests that has any, ascending."""
    current, pieces = 0, [_SCHEMA.empty_table()]
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            edges = Keys.from_packed(pack_column(table.column("key"))).partition_edges(_RANGES)
            for number in range(_RANGES):
                if edges[number] == edges[number + 1]:
                    continue
                if number != current:
                    yield current, pa.concat_tables(pieces)
                    current, pieces = number, []
                pieces.append(table.slice(edges[number], edges[number + 1] - edges[number]))
    yield current, pa.concat_tables(pieces)
