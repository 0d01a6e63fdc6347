"""Rows in an order that depends on what a store holds, not on who wrote it when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from raystill.store.reader import iter_rows, keys_to_score
from raystill.store.records import TeacherRow
from raystill.store.store import TeacherStore

Message = dict[str, Any]


def iter_sorted_rows(
    store: TeacherStore, *, with_signal: bool = False, num_logprobs: int | None = None
) -> Iterator[TeacherRow]:
    """Every row, by partition and key; one partition in memory. Raises what `iter_rows` raises."""
    for partition in range(store.num_partitions):
        rows = iter_rows(store, partitions=(partition,), with_signal=with_signal, num_logprobs=num_logprobs)
        yield from sorted(rows, key=lambda row: row.key)


def is_scored(store: TeacherStore) -> bool:
    """Whether every row that has tokens has a signal."""
    return not any(keys_to_score(store, partition, 1) for partition in range(store.num_partitions))


def prompt_messages(row: TeacherRow) -> list[Message]:
    """The conversation up to the answer."""
    messages: list[Message] = json.loads(row.messages)
    return messages


def answer_message(row: TeacherRow) -> Message:
    """The answer as an assistant's message, with tool calls and reasoning where there are any."""
    message: Message = {"role": "assistant", "content": row.completion}
    if row.tool_calls:
        message["tool_calls"] = json.loads(row.tool_calls)
    if row.reasoning:
        message["reasoning_content"] = row.reasoning
    return message


def dump_line(record: dict[str, Any]) -> str:
    """One JSON line."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def provenance(row: TeacherRow) -> dict[str, Any]:
    """What an importer needs to give the row its old names."""
    return {
        "prompt_id": row.prompt_id,
        "split": row.split,
        "source": row.source,
    }
