"""The Ray Data task: one partition of the store in, the facts of its rows out, as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystill.config.curate import PersonalDataMode
from raystill.curate.candidate import Candidate, Check, Drop
from raystill.curate.facts import Fact, facts_to_table
from raystill.curate.near_duplicates import (
    NearDuplicateSettings,
    compute_signatures,
    signature_columns,
    text_for_signature,
)
from raystill.curate.personal_data import count_kinds, find_personal_data, redact
from raystill.curate.words import text_digest
from raystill.errors import DataError
from raystill.store.codec import list_arrays
from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore

WANTED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("source", pa.string()),
        pa.field("task", pa.string()),
    ]
)
_COLUMNS = (
    "key", "sample_index", "messages", "completion", "finish_reason", "tool_calls", "usage",
    "num_completion_tokens",
)  # fmt: skip
_HELD_OUT = "eval"


@dataclass(frozen=True)
class Inspection:
    """What a task needs: the store, what to look for, and where its facts go.

    `checks` run in order, the first that drops a row decides; `checks_held_out` are those that count on
    held-out rows as well. With `with_logprobs` a row's mean logprob is looked up.
    """

    store: TeacherStore
    scratch: Path
    checks: tuple[Check, ...]
    checks_held_out: tuple[Check, ...]
    personal_data: PersonalDataMode
    near_duplicates: NearDuplicateSettings | None
    with_logprobs: bool


def wanted_path(scratch: Path, partition: int) -> Path:
    """Where the driver lists a partition's rows of this run, as a table of WANTED_SCHEMA."""
    return scratch / f"wanted-{partition:04d}.parquet"


def inspect_partition(block: pa.Table, inspection: Inspection) -> Iterator[pa.Table]:
    """Look at the run's rows of one partition; yields the paths of the facts that were written.

    `block` has one row with the partition's number. Memory: one part of the store at a time.
    """
    for partition in block.column("partition").to_pylist():
        wanted = {
            row["key"]: row for row in pq.read_table(wanted_path(inspection.scratch, partition)).to_pylist()
        }
        logprobs = _score_logprobs(inspection.store, partition) if inspection.with_logprobs else {}
        columns = (*_COLUMNS, "sampled_logprob") if inspection.with_logprobs else _COLUMNS
        tables = iter_tables(inspection.store, columns=columns, keys=wanted, partitions=(partition,))
        for number, table in enumerate(tables):
            path = inspection.scratch / f"facts-{partition:04d}-{number:06d}.parquet"
            if inspection.with_logprobs:
                logprobs = _row_logprobs(table) | logprobs
            candidates = [_candidate(row, wanted[row["key"]]) for row in _plain_rows(table)]
            _write_facts(path, candidates, logprobs, inspection)
            yield pa.table({"path": [str(path)], "rows": [table.num_rows]})


def inspect_row(row: Candidate, inspection: Inspection) -> tuple[Fact, str]:
    """What the filters that look at one row alone say of it; and its completion, redacted if it is."""
    is_held_out = row.split == _HELD_OUT
    matches = found_in_prompt = []
    if inspection.personal_data != "ignore":
        matches, found_in_prompt = find_personal_data(row.completion), find_personal_data(row.prompt)
    kinds = count_kinds(matches)
    completion = row.completion
    if inspection.personal_data == "redact" and matches and not is_held_out:
        completion = redact(row.completion, matches)
    seen = row if completion is row.completion else _with_completion(row, completion)
    drop = _first_drop(seen, inspection.checks_held_out if is_held_out else inspection.checks)
    if drop is None and matches and inspection.personal_data == "drop":
        drop = Drop("personal_data", ", ".join(sorted(kinds)))
    fact = Fact(
        key=row.key,
        prompt_id=row.prompt_id,
        split=row.split,
        source=row.source,
        sample_index=row.sample_index,
        digest=text_digest(row.prompt, completion, row.tool_calls or ""),
        drop=drop,
        redacted=None if completion is row.completion else completion,
        personal_data=tuple(sorted(kinds.elements())),
        prompt_personal_data=tuple(sorted(count_kinds(found_in_prompt).elements())),
    )
    return fact, completion


def _first_drop(row: Candidate, checks: tuple[Check, ...]) -> Drop | None:
    return next((drop for check in checks if (drop := check(row)) is not None), None)


def _with_completion(row: Candidate, completion: str) -> Candidate:
    fields = {name: getattr(row, name) for name in Candidate.__dataclass_fields__}
    return Candidate(**{**fields, "completion": completion})


def _write_facts(
    path: Path, candidates: list[Candidate], logprobs: dict[str, float], inspection: Inspection
) -> None:
    facts: list[Fact] = []
    texts: list[str] = []
    for candidate in candidates:
        fact, completion = inspect_row(candidate, inspection)
        facts.append(fact)
        texts.append(text_for_signature(candidate.prompt, completion))
    table = facts_to_table(facts)
    if inspection.with_logprobs:
        column = pa.array([logprobs.get(fact.key) for fact in facts], pa.float32())
        table = table.set_column(table.column_names.index("mean_logprob"), "mean_logprob", column)
    settings = inspection.near_duplicates
    if settings is not None:
        is_candidate = [fact.drop is None and fact.split != _HELD_OUT for fact in facts]
        signatures_MP = compute_signatures(texts, settings)
        for name, column in signature_columns(signatures_MP, is_candidate, settings).items():
            table = table.append_column(name, column)
    pq.write_table(table, path, compression="zstd")


def _plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.select(list(_COLUMNS)).to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _candidate(row: dict[str, Any], wanted: dict[str, Any]) -> Candidate:
    usage, tokens = row.pop("usage"), row.pop("num_completion_tokens")
    if not tokens and row["completion"]:
        tokens = _tokens_of_usage(usage, row["key"])
    return Candidate(**wanted, **{name: row[name] for name in row if name != "key"}, num_tokens=tokens)


def _tokens_of_usage(usage: str | None, key: str) -> int | None:
    """Completion tokens that an endpoint counted; None where it said nothing."""
    try:
        counted = json.loads(usage).get("completion_tokens") if usage else None
    except (ValueError, AttributeError) as error:
        raise DataError("a stored row's usage is not a JSON object", where=f"row {key}") from error
    return counted if isinstance(counted, int) else None


def _row_logprobs(table: pa.Table) -> dict[str, float]:
    """Mean logprob of the sampled tokens by key, for rows that have any."""
    keys, arrays = table.column("key").to_pylist(), list_arrays(table, "sampled_logprob")
    return {
        key: float(np.mean(values, dtype=np.float64))
        for key, values in zip(keys, arrays, strict=True)
        if len(values)
    }


def _score_logprobs(store: TeacherStore, partition: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for table in iter_tables(
        store, kind="scores", columns=("key", "sampled_logprob"), partitions=(partition,)
    ):
        found |= _row_logprobs(table)
    return found
