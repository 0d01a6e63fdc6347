"""The conversations that a store's rows answer: each one once, named by its messages alone.

A run that takes its answers from a store has no prompt files: `prepare` makes its prompt table from these
conversations, and `generate` finds the answers of a prompt again by the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore

ID_LENGTH = 24
_COLUMNS = ("key", "messages", "source", "sample_index")


@dataclass(frozen=True)
class StoredAnswer:
    """One row, by the conversation that it answers. `messages` is JSON, "[]" where only ids are known."""

    key: str
    conversation: str
    messages: str
    source: str
    sample_index: int


def conversation_id(messages: Sequence[Mapping[str, Any]]) -> str:
    """24 hex digits; the prompt table's own name for a conversation that brings none."""
    text = json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:ID_LENGTH]


def iter_answers(store: TeacherStore) -> Iterator[StoredAnswer]:
    """Every row of the store. Raises DataError naming a missing or damaged part."""
    for table in iter_tables(store, columns=_COLUMNS):
        for row in table.to_pylist():
            name = conversation_id(json.loads(row["messages"]))
            yield StoredAnswer(row["key"], name, row["messages"], row["source"], row["sample_index"])
