"""What faults do to a body: every function takes the upstream's bytes and returns what the client gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from email.utils import formatdate
from time import time
from typing import Any

from raystill.testing.faults import FaultKind

HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"
_MESSAGES = {
    "429": "Rate limit reached for requests",
    "401": "Incorrect API key provided",
    "403": "Project does not have access to the model",
    "404": "The model does not exist",
}
_CODES = {
    "429": "rate_limit_exceeded",
    "401": "invalid_api_key",
    "403": "permission_denied",
    "404": "model_not_found",
}


def error_body(status: str) -> bytes:
    """OpenAI's error object for a status."""
    message = _MESSAGES.get(status, "The server had an error while processing your request")
    error = {"message": message, "type": "fault", "param": None, "code": _CODES.get(status, "server_error")}
    return json.dumps({"error": error}).encode()


def retry_after(argument: str) -> dict[str, str]:
    """The Retry-After header: seconds as given, `date+S` as an HTTP-date S seconds ahead, "" for none."""
    if not argument:
        return {}
    if argument.startswith("date+"):
        return {"Retry-After": formatdate(time() + float(argument[5:]), usegmt=True)}
    return {"Retry-After": argument}


def mangled(kind: FaultKind, body: bytes) -> bytes | None:
    """The body after a fault that changes content, or None for a fault that doesn't."""
    change = _CHANGES.get(kind)
    return None if change is None else change(body)


def _each_line(body: bytes, change: Callable[[Any], Any]) -> bytes:
    """A JSON document, or the lines of a JSONL file; what is neither stays as it is."""
    try:
        return json.dumps(change(json.loads(body))).encode()
    except ValueError:
        pass
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    except ValueError:
        return body
    return b"".join(json.dumps(change(line)).encode() + b"\n" for line in lines)


def _inner(answer: Any) -> Any:
    """The chat completion inside a line of a batch's results, or the document itself."""
    if isinstance(answer, dict) and isinstance(answer.get("response"), dict):
        return answer["response"].get("body")
    return answer


def _empty_choices(answer: Any) -> Any:
    completion = _inner(answer)
    if isinstance(completion, dict) and "choices" in completion:
        completion["choices"] = []
    return answer


def _null_content(answer: Any) -> Any:
    completion = _inner(answer)
    if isinstance(completion, dict):
        for choice in completion.get("choices", []):
            choice["message"]["content"] = None
    return answer


def _wrong_id(answer: Any) -> Any:
    if isinstance(answer, dict):
        for name in {"id", "custom_id"} & set(answer):
            answer[name] = f"of-another-{name}"
    return answer


def _twice(body: bytes) -> bytes:
    return b"".join(line + b"\n" + line + b"\n" for line in body.splitlines()) if _is_jsonl(body) else body


def _reversed(body: bytes) -> bytes:
    return b"".join(line + b"\n" for line in reversed(body.splitlines())) if _is_jsonl(body) else body


def _is_jsonl(body: bytes) -> bool:
    return b'"custom_id"' in body


_CHANGES: dict[FaultKind, Callable[[bytes], bytes]] = {
    "html": lambda body: HTML,
    "bad_json": lambda body: body[: len(body) // 2] + b'"]',
    "error_200": lambda body: error_body("500"),
    "empty_choices": lambda body: _each_line(body, _empty_choices),
    "null_content": lambda body: _each_line(body, _null_content),
    "wrong_id": lambda body: _each_line(body, _wrong_id),
    "duplicate": _twice,
    "reorder": _reversed,
}
