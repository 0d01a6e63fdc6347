"""A store as an OpenAI batch: the output file, and the input file with the requests beside it.

What vLLM's `run_batch` adds to OpenAI's format is written too: `prompt_token_ids`, `token_ids`, and tokens of
logprobs as "token_id:N". Logprobs are written where every row has a signal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raystill.run.publish import publish_file
from raystill.store.exporters.rows import (
    answer_message,
    dump_line,
    is_scored,
    iter_sorted_rows,
    prompt_messages,
    provenance,
)
from raystill.store.records import TeacherRow, TopKSignal
from raystill.store.store import TeacherStore


def input_path(path: Path) -> Path:
    """Where the requests of the batch output `path` are written."""
    return path.with_suffix(".input.jsonl")


def export_openai_batch(store: TeacherStore, path: Path) -> int:
    """Write `path` and `input_path(path)`, each atomically; returns the number of rows.

    custom_id is the row's key. Equal stores give equal bytes. Holds one partition in memory.
    """
    teacher, with_signal, count = store.identity.teacher, is_scored(store), 0
    with (
        publish_file(input_path(path)) as inputs,
        publish_file(path) as outputs,
        inputs.open("w", encoding="utf-8") as asked,
        outputs.open("w", encoding="utf-8") as answered,
    ):
        for row in iter_sorted_rows(store, with_signal=with_signal):
            asked.write(dump_line(_request(row, teacher)))
            answered.write(dump_line(_response(row, teacher)))
            count += 1
    return count


def _request(row: TeacherRow, teacher: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": teacher,
        "messages": prompt_messages(row),
        "metadata": provenance(row),
    }
    if row.signal is not None:
        body |= {"logprobs": True, "top_logprobs": row.signal.num_logprobs}
    return {"custom_id": row.key, "method": "POST", "url": "/v1/chat/completions", "body": body}


def _response(row: TeacherRow, teacher: str) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": row.sample_index,
        "message": answer_message(row),
        "finish_reason": row.finish_reason,
        "logprobs": None,
    }
    if len(row.completion_token_ids):
        choice["token_ids"] = row.completion_token_ids.tolist()
    if row.signal is not None:
        choice["logprobs"] = {"content": _entries(row, row.signal)}
    body: dict[str, Any] = {
        "id": row.key,
        "object": "chat.completion",
        "model": teacher,
        "choices": [choice],
    }
    if len(row.prompt_token_ids):
        body["prompt_token_ids"] = row.prompt_token_ids.tolist()
    if row.usage:
        body["usage"] = json.loads(row.usage)
    response = {"status_code": 200, "request_id": row.key, "body": body}
    return {"id": row.key, "custom_id": row.key, "response": response, "error": None}


def _entries(row: TeacherRow, signal: TopKSignal) -> list[dict[str, Any]]:
    positions = zip(
        row.completion_token_ids.tolist(),
        signal.sampled_logprob_T.tolist(),
        token_entries(signal),
        strict=True,
    )
    return [
        {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": entries}
        for token, logprob, entries in positions
    ]


def token_entries(signal: TopKSignal) -> list[list[dict[str, Any]]]:
    """Per token the K entries `{"token": "token_id:N", "logprob": x}`, best first."""
    ids, logprobs = signal.topk_ids_TK.tolist(), signal.topk_logprobs_TK.tolist()
    return [
        [{"token": f"token_id:{token}", "logprob": value} for token, value in zip(*position, strict=True)]
        for position in zip(ids, logprobs, strict=True)
    ]
