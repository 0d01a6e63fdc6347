"""How much a store of answers from elsewhere holds, from its commits and the footers of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raystill.store.commit_record import CommitRecord
    from raystill.store.store import TeacherStore

BYTES_PER_TOKEN = 4
_PARTS_LOOKED_AT = 32


@dataclass(frozen=True)
class StoredAnswers:
    """Rows and tokens of a store; None where nothing says. `is_guessed`: tokens are texts' bytes / 4.

    Every row counts as a prompt; a prompt that has several answers is asked about only once.
    """

    rows: int
    prompt_tokens: int | None
    completion_tokens: int | None
    is_guessed: bool
    teacher: str
    engine: str


def count_answers(path: Path) -> StoredAnswers | None:
    """Count the store at `path`; None where there is none yet. Raises DataError for a damaged commit.

    Answers that were imported as text have no tokens of their own: those of their scores count, and before
    they are scored the size of their texts.
    """
    from raystill.store.store import load_store

    if not (path / "store.json").exists():
        return None
    store = load_store(path)
    rows, scores = _load(store, "rows"), _load(store, "scores")
    num_rows = sum(commit.num_rows for commit in rows)
    tokens = sum(commit.num_tokens for commit in rows)
    if not tokens and sum(commit.num_rows for commit in scores) >= num_rows:
        tokens = sum(commit.num_tokens for commit in scores)
    prompt_bytes, completion_bytes = _text_bytes(store, rows)
    guessed = completion_bytes // BYTES_PER_TOKEN or None
    return StoredAnswers(
        rows=num_rows,
        prompt_tokens=prompt_bytes // BYTES_PER_TOKEN or None,
        completion_tokens=tokens or guessed,
        is_guessed=not tokens and guessed is not None,
        teacher=store.identity.teacher,
        engine=store.identity.engine,
    )


def _load(store: TeacherStore, kind: str) -> list[CommitRecord]:
    from raystill.store.commit import load_commits

    return [
        commit
        for partition in range(store.num_partitions)
        for commit in load_commits(store, partition)
        if commit.kind == kind
    ]


def _text_bytes(store: TeacherStore, commits: Sequence[CommitRecord]) -> tuple[int, int]:
    """Bytes of messages and of completions, extrapolated from the first parts that can be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, looked_at = {"messages": 0, "completion": 0}, 0
    for commit in commits[:_PARTS_LOOKED_AT]:
        try:
            footer = pq.read_metadata(commit.part_path(store))
        except (OSError, pa.ArrowInvalid):
            continue
        looked_at += commit.num_rows
        for group in map(footer.row_group, range(footer.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema in found:
                    found[column.path_in_schema] += column.total_uncompressed_size
    scale = sum(commit.num_rows for commit in commits) / max(1, looked_at)
    return round(found["messages"] * scale), round(found["completion"] * scale)
