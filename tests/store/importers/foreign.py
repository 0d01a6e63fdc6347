"""Foreign files for the tests of importers. Not a test module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import raystill
from raystill.store.importers.formats import ImportFormat, ImportRequest, import_files
from raystill.store.importers.load_answers import ImportCounts
from raystill.store.store import TeacherStore

DEMO_TEACHER = Path(raystill.__file__).parent / "demo" / "teacher"


def write_lines(path: Path, *records: Any) -> Path:
    """One line per record; text is written as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(
    directory: Path, format_: ImportFormat, *files: Path, **options: Any
) -> tuple[TeacherStore, ImportCounts]:
    """Import into DIRECTORY/store; the counts always add up."""
    request = ImportRequest(
        format_, files, directory / "store", options.pop("teacher", "some-teacher"), **options
    )
    store, counts = import_files(request)
    assert counts.num_read == counts.num_added + counts.num_known + counts.num_rejected
    assert counts.num_rejected == sum(counts.rejects_by_code.values())
    return store, counts


def request(custom_id: str, content: str = "What is 2 + 2?", **body: Any) -> dict[str, Any]:
    """A line of a batch input file."""
    messages = [{"role": "user", "content": content}]
    body = {"model": "m", "messages": messages, "temperature": 0.5, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def response(custom_id: str, *contents: str | None, **choice: Any) -> dict[str, Any]:
    """A line of a batch output file, one choice per content."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content},
            "finish_reason": "stop",
            **choice,
        }
        for index, content in enumerate(contents)
    ]
    body = {
        "object": "chat.completion",
        "choices": choices,
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
    answered = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": f"b-{custom_id}", "custom_id": custom_id, "response": answered, "error": None}


def entry(token: str, logprob: float, *others: tuple[str, float]) -> dict[str, Any]:
    """One token of OpenAI-style logprobs, itself first among the top ones."""
    top = [{"token": name, "logprob": value} for name, value in ((token, logprob), *others)]
    return {"token": token, "logprob": logprob, "top_logprobs": top}
