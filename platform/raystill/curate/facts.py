"""What the filters found out about every row, without its text: all that the driver holds.

Tasks write facts as Parquet into the stage's scratch directory, one file per part of the store, with the
columns that near duplicates are found by; the driver reads the others, some 500 bytes of memory per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.curate.candidate import Drop

FACT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
        pa.field("code", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("redacted", pa.string()),
        pa.field("mean_logprob", pa.float32()),
        pa.field("personal_data", pa.list_(pa.string()), nullable=False),
        pa.field("prompt_personal_data", pa.list_(pa.string()), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A row without its text. `drop` is what a filter that looks at one row alone said.

    `digest` names the normalised prompt and completion; `redacted` replaces the completion where personal
    data was taken out; `personal_data` lists the kinds that were found, one entry per match.
    """

    key: str
    prompt_id: str
    split: str
    source: str
    sample_index: int
    digest: bytes
    drop: Drop | None = None
    redacted: str | None = None
    mean_logprob: float | None = None
    personal_data: tuple[str, ...] = ()
    prompt_personal_data: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, str]:
        """Of equal rows the first in this order is kept, whoever wrote them when."""
        return self.sample_index, self.key


def facts_to_table(facts: Sequence[Fact]) -> pa.Table:
    """Facts as a table of FACT_SCHEMA."""
    rows = [
        {
            **{name: getattr(fact, name) for name in FACT_SCHEMA.names if name not in ("code", "detail")},
            "code": None if fact.drop is None else fact.drop.code,
            "detail": None if fact.drop is None else fact.drop.detail,
        }
        for fact in facts
    ]
    return pa.Table.from_pylist(rows, FACT_SCHEMA)


def load_facts(paths: Iterable[Path]) -> list[Fact]:
    """The facts of all files, sorted by key: the order does not depend on who wrote them."""
    facts = []
    for path in paths:
        for row in pq.read_table(path, columns=FACT_SCHEMA.names).to_pylist():
            code, detail = row.pop("code"), row.pop("detail")
            for name in ("personal_data", "prompt_personal_data"):
                row[name] = tuple(row[name])
            facts.append(Fact(**row, drop=None if code is None else Drop(code, detail)))
    return sorted(facts, key=lambda fact: fact.key)
