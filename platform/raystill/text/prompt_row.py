"""The prompt table: one row per distinct prompt, read by every later stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from raystill.text.row_sampling import RowSampling
from raystill.text.task_kind import TaskKind as TaskKind

Split = Literal["train", "eval"]


@dataclass(frozen=True)
class Prompt:
    """One prompt. `messages` is a list of {"role", "content"}; `reference` is the right answer where known.

    `task` says how a completion is judged: `text` (no exact answer), `exact` (equal after stripping),
    `tool_call` (one JSON object with `name` and `arguments`). `sampling` is what the row asks for itself, see
    `parse_row_sampling`.
    """

    id: str
    source: str
    split: Split
    messages: list[dict[str, str]]
    task: TaskKind
    reference: str | None
    num_tokens: int
    sampling: RowSampling | None = None


PROMPT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("messages", pa.string(), nullable=False),  # JSON
        pa.field("task", pa.string(), nullable=False),
        pa.field("reference", pa.string()),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("sampling", pa.string()),  # JSON
    ]
)
