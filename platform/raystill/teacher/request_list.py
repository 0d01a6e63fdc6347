"""The list of a run's requests on disk: its keys in order, whose prompts they are, and what it was made from.

It outlives the run that made it: the next one counts and resumes from it, and renders a prompt again only
where one of its requests is still open, or where the prompt is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import raystill
from raystill.config.schema import Config
from raystill.run.publish import sha256_file
from raystill.store.identity import StoreIdentity
from raystill.store.pending import iter_pending
from raystill.store.requests import REQUEST_SCHEMA, RequestTableWriter, iter_request_tables, request_note
from raystill.store.store import TeacherStore
from raystill.teacher.spill import PartitionSpill

_NOTE = "raystill.plan"
_PROMPT_ROW = pa.field("prompt_row", pa.int64(), nullable=False)
LISTED_SCHEMA = REQUEST_SCHEMA.append(_PROMPT_ROW)
# How a run is carried out and paid for names no request; whatever else the configuration says might.
_NOT_THE_REQUESTS: dict[str, Any] = {
    "vllm": True,
    "store": True,
    "signals": True,
    "closed": {"budget": True, "limits": True, "prices": True},
}


@dataclass(frozen=True)
class Origin:
    """What decides a run's requests, as hex sha256: the whole prompt table, and everything else."""

    prompts: str
    settings: str


@dataclass(frozen=True)
class RequestList:
    """What a list was made from; `has_schemas` is whether any completion is forced into a JSON Schema."""

    origin: Origin
    num_prompts: int
    has_schemas: bool


def list_origin(
    config: Config, identity: StoreIdentity, prompt_table: Path, facts: Mapping[str, Any]
) -> Origin:
    """What a list of these requests would be made from; reads the whole prompt table once."""
    said = {
        "program": raystill.__version__,
        "identity": identity.model_dump(mode="json"),
        "seed": config.run.seed,
        "teacher": config.teacher.model_dump(mode="json", exclude=_NOT_THE_REQUESTS),
        "facts": dict(facts),
    }
    settings = hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8")).hexdigest()
    return Origin(sha256_file(prompt_table), settings)


def load_request_list(table: Path) -> RequestList | None:
    """What the list at `table` says of itself; None where there is none that can be read."""
    note = request_note(table, _NOTE)
    try:
        facts = {} if note is None else json.loads(note)
        return RequestList(Origin(**facts.pop("origin")), **facts)
    except (KeyError, TypeError):  # there is none, or it is of another version
        return None


class RequestListWriter:
    """Collects requests in any order, then publishes the list. Memory: a buffer, and a range of keys."""

    def __init__(self, table: Path, scratch: Path, num_partitions: int) -> None:
        self.table = table
        self._spill = PartitionSpill(scratch, LISTED_SCHEMA, num_partitions, rank=_PROMPT_ROW.name)

    def add(self, rows: list[dict[str, Any]], prompt_rows: list[int]) -> None:
        """Take requests and the place of each one's prompt in the prompt table."""
        listed = pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)
        self._spill.add(listed.append_column(_PROMPT_ROW, pa.array(prompt_rows, pa.int64())))

    def keep(self, new_row_N: npt.NDArray[np.int64]) -> None:
        """Take the requests of the list that stands at the table's place; `new_row_N` says where each of its
        prompts stands now, -1 where it doesn't."""
        for listed in iter_request_tables(self.table, LISTED_SCHEMA.names):
            rows = new_row_N[listed.column(_PROMPT_ROW.name).to_numpy()]
            moved = listed.set_column(len(REQUEST_SCHEMA), _PROMPT_ROW, pa.array(rows))
            self._spill.add(moved.filter(pa.array(rows >= 0)))

    def publish(self, made_from: RequestList) -> None:
        """Publish the list, equal keys once: of prompts that render alike, the first."""
        with RequestTableWriter(self.table, LISTED_SCHEMA) as writer:
            for _, listed in self._spill.iter_partitions():
                writer.add(listed)
            writer.note(_NOTE, json.dumps(asdict(made_from)))


def publish_requests(path: Path, listed: PartitionSpill) -> int:
    """Publish requests that came in any order, as a table of REQUEST_SCHEMA; returns how many."""
    count = 0
    with RequestTableWriter(path) as writer:
        for _, requests in listed.iter_partitions():
            writer.add(requests)
            count += requests.num_rows
    return count


def count_listed(table: Path, num_prompts: int) -> npt.NDArray[np.int32]:
    """How many requests of each of its prompts a list holds. Raises DataError if it can't be read."""
    counts = np.zeros(num_prompts, np.int32)
    for listed in iter_request_tables(table, (_PROMPT_ROW.name,)):
        rows, found = np.unique(listed.column(_PROMPT_ROW.name).to_numpy(), return_counts=True)
        counts[rows] += found.astype(np.int32)
    return counts


def pending_prompts(store: TeacherStore, table: Path, num_prompts: int) -> npt.NDArray[np.bool_]:
    """Of every row of the prompt table, whether the store lacks one of its requests.

    Raises like `iter_pending`.
    """
    wanted = np.zeros(num_prompts, np.bool_)
    for _, rows in iter_pending(store, table):
        wanted[rows.column("prompt_row").to_numpy()] = True
    return wanted
