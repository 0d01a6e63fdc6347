"""`completions.parquet`: every held-out prompt with what each model wrote, for reading and for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.evaluate.gap import ModelOutputs
from raystill.run.publish import publish_file
from raystill.text.prompt_row import Prompt

_PROMPT_FIELDS = [
    pa.field("prompt_id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("messages", pa.string(), nullable=False),  # JSON
    pa.field("reference", pa.string()),
]


def save_completions(path: Path, prompts: Sequence[Prompt], outputs: Sequence[ModelOutputs]) -> None:
    """Publish one row per prompt, with columns `<model>_completion`, `_correct` and `_finish_reason`."""
    columns: list[pa.Array] = [
        pa.array([prompt.id for prompt in prompts], pa.string()),
        pa.array([prompt.source for prompt in prompts], pa.string()),
        pa.array([prompt.task for prompt in prompts], pa.string()),
        pa.array([json.dumps(prompt.messages, ensure_ascii=False) for prompt in prompts], pa.string()),
        pa.array([prompt.reference for prompt in prompts], pa.string()),
    ]
    fields = list(_PROMPT_FIELDS)
    for entry in outputs:
        fields += [
            pa.field(f"{entry.key}_completion", pa.string(), nullable=False),
            pa.field(f"{entry.key}_correct", pa.bool_()),
            pa.field(f"{entry.key}_finish_reason", pa.string(), nullable=False),
        ]
        columns += [
            pa.array(entry.completions, pa.string()),
            pa.array([verdict.correct for verdict in entry.verdicts], pa.bool_()),
            pa.array(entry.finish_reasons, pa.string()),
        ]
    with publish_file(path) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), temporary, compression="zstd")


def load_completions(path: Path) -> list[dict[str, Any]]:
    """The rows of `completions.parquet`. Raises DataError if it can't be read."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            "the completions can't be read", where=str(path), fix="raystill evaluate --fresh"
        ) from error
    return rows
