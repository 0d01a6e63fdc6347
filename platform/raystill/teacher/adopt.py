"""Answers that a store holds already become a run's requests: no teacher is asked, no key is made anew.

The rows keep their keys, and so does the store its identity: whoever gave the answers is who the run's
teacher is, whatever `teacher.open` scores them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystill.store.conversations import ID_LENGTH, StoredAnswer, iter_answers
from raystill.store.identity import KEY_LENGTH
from raystill.store.requests import REQUEST_SCHEMA
from raystill.store.store import TeacherStore
from raystill.teacher.plan_requests import RequestPlan
from raystill.teacher.request_list import publish_requests
from raystill.teacher.sampling import EVAL_SPLIT
from raystill.teacher.spill import PartitionSpill
from raystill.text.prompt_table import iter_prompt_batches

# Conversations are named by digits as random as those of keys, so they are cut into ranges like them.
_RANGES = 64
_BATCH_ROWS = 8192
_CONVERSATION = re.compile(f"[0-9a-f]{{{ID_LENGTH}}}")
_NAME = pa.field("key", pa.string())
_PROMPT_SCHEMA = pa.schema([_NAME, pa.field("split", pa.string())])
_ANSWER_SCHEMA = pa.schema([_NAME, pa.field("sample_index", pa.int32()), pa.field("answer", pa.string())])


@dataclass(frozen=True)
class Adopted:
    """The plan, all of it done. `unused` rows are further answers of held-out prompts, or of prompts that
    `prepare` left out."""

    plan: RequestPlan
    unused: int


def adopt_answers(store: TeacherStore, prompt_table: Path, table: Path, scratch: Path) -> Adopted:
    """Take every stored answer of the table's prompts; of a held-out prompt the first one. The requests are
    published in `table`, by way of `scratch`.

    A prompt's answers are numbered anew, in the order of their own sample index and key: several imported
    ones may all be the first sample. Memory: a range of conversations, whatever the number of answers. Raises
    DataError naming a missing or damaged part.
    """
    prompts = PartitionSpill(scratch / "prompts", _PROMPT_SCHEMA, _RANGES)
    for batch in iter_prompt_batches(prompt_table):
        rows = [(prompt.id, prompt.split) for prompt in batch if _CONVERSATION.fullmatch(prompt.id)]
        prompts.add(_table_of(rows, _PROMPT_SCHEMA))
    answers = PartitionSpill(scratch / "answers", _ANSWER_SCHEMA, _RANGES, keeps_equal=True)
    num_rows = 0
    for some in _batches(iter_answers(store)):
        num_rows += len(some)
        found = [(each.conversation, each.sample_index, each.key) for each in some]
        answers.add(_table_of(found, _ANSWER_SCHEMA))
    listing = PartitionSpill(scratch / "listed", REQUEST_SCHEMA, store.num_partitions)
    wanted = groupby(prompts.iter_partitions(), itemgetter(0))
    number, known = -1, _PROMPT_SCHEMA.empty_table()
    for at, some_answers in answers.iter_partitions():
        while number < at:
            number, tables = next(wanted, (_RANGES, iter(())))
            known = pa.concat_tables([_PROMPT_SCHEMA.empty_table(), *(each for _, each in tables)])
        if number == at:
            listing.add(_requests_of(known, some_answers))
    count = publish_requests(table, listing)
    return Adopted(RequestPlan(table, count, (), reused=count), num_rows - count)


def _batches(answers: Iterable[StoredAnswer]) -> Iterator[list[StoredAnswer]]:
    iterator = iter(answers)
    while some := list(islice(iterator, _BATCH_ROWS)):
        yield some


def _table_of(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Rows that begin with a conversation's name, which becomes as long as a key."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    names = [name.ljust(KEY_LENGTH, "0") for name in columns[0]]
    return pa.table([pa.array(names, pa.string()), *map(list, columns[1:])], schema=schema)


def _requests_of(prompts: pa.Table, answers: pa.Table) -> pa.Table:
    """The requests of the answers of a range of conversations, which it holds whole."""
    places = pc.index_in(answers.column("key"), prompts.column("key").combine_chunks())
    answers = answers.append_column("split", prompts.column("split").take(places.combine_chunks()))
    answers = answers.filter(places.is_valid()).sort_by(
        [("key", "ascending"), ("sample_index", "ascending"), ("answer", "ascending")]
    )
    names = answers.column("key").to_numpy(zero_copy_only=False)
    # Every answer's place among those of its conversation, which stand side by side.
    is_first = np.ones(len(names), np.bool_)
    is_first[1:] = names[1:] != names[:-1]
    rows = np.arange(len(names))
    index = rows - np.maximum.accumulate(np.where(is_first, rows, 0))
    columns = [
        answers.column("answer"),
        pc.utf8_slice_codeunits(answers.column("key"), 0, ID_LENGTH),
        answers.column("split"),
        pa.chunked_array([pa.array(index, pa.int32())]),
    ]
    is_taken = is_first | ~pc.equal(answers.column("split"), EVAL_SPLIT).to_numpy()
    return pa.table(columns, schema=REQUEST_SCHEMA).filter(pa.array(is_taken))
