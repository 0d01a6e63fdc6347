"""Prompts from a teacher store: the conversations that its rows answer, as `teacher.base.from_store` asks.

They were given to a teacher as they stand, so nothing is added to them and none is reshaped; unlike those of
a prompt file they may hold tool calls and end with a tool's result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.errors import DataError
from raystill.prompts.rows import BadRow, excerpt_of
from raystill.prompts.shapes import ROLES, RawPrompt
from raystill.store.conversations import iter_answers
from raystill.store.store import TeacherStore, load_store


@dataclass(frozen=True)
class StoredPrompts:
    """One row per conversation, and the tags of their sources, by `source_index`."""

    rows: list[RawPrompt | BadRow]
    labels: list[str]


def load_stored_prompts(store: TeacherStore) -> StoredPrompts:
    """Every conversation of the store. Raises DataError for a damaged part."""
    rows: list[RawPrompt | BadRow] = []
    seen: set[str] = set()
    sources: dict[str, int] = {}
    for answer in iter_answers(store):
        if answer.conversation not in seen:
            seen.add(answer.conversation)
            index = sources.setdefault(answer.source, len(sources))
            rows.append(_read_conversation(answer.key, answer.conversation, answer.messages, index))
    return StoredPrompts(rows, list(sources))


def require_answers(path: Path) -> TeacherStore:
    """The store at `path`. Raises DataError where there is none, or where it has no rows."""
    from raystill.store.commit import load_commits

    store = load_store(path)
    if not any(load_commits(store, partition, "rows") for partition in range(store.num_partitions)):
        raise DataError(
            "the teacher store has no answers",
            where=f"{path} (teacher.base.from_store)",
            fix="import some (raystill store import), or remove the key to ask the teacher",
        )
    return store


def _read_conversation(key: str, name: str, text: str, source_index: int) -> RawPrompt | BadRow:
    where, messages = f"row {key}", json.loads(text)
    problem = _find_problem(messages)
    if problem is not None:
        return BadRow(where, *problem, excerpt_of(text))
    # A turn of tool calls alone has no content; later stages count on a text.
    turns = [{**message, "content": message.get("content") or ""} for message in messages]
    return RawPrompt(
        where=where,
        source_index=source_index,
        messages=turns,
        task="text",
        reference=None,
        id=name,
        id_is_required=False,
        opening=_opening(turns),
    )


def _find_problem(messages: list[Mapping[str, Any]]) -> tuple[str, str] | None:
    if not messages:
        return "ids_only", "only token ids are stored, not the conversation"
    for index, message in enumerate(messages):
        if message.get("role") not in ROLES:
            return "role", f"turn {index} has the unknown role {message.get('role')!r}"
        if not isinstance(message.get("content") or "", str):
            return "content_type", f"turn {index} has a list of content parts; only text is supported"
    return None


def _opening(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to the user's first turn: all turns of one trace fall on the same side of the split."""
    for index, turn in enumerate(turns):
        if turn["role"] == "user":
            return turns[: index + 1]
    return turns
