"""A batch's result files, line by line: joined by custom_id only, every line an answer or a failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import msgspec

from raystill.teacher.api.outcomes import Failure, classify_status
from raystill.teacher.api.wire import parse_error

# The provider's codes for rows that it never executed: nothing was billed.
_NEVER_EXECUTED = {"batch_expired": "expired", "batch_cancelled": "cancelled"}


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


_DECODER = msgspec.json.Decoder(_Line)


@dataclass
class LineCounts:
    """Lines that were left out: of a row that has one already, of no row of the batch, of no format."""

    duplicates: int = 0
    strangers: int = 0
    torn: int = 0


def iter_results(
    files: Sequence[Path], keys: Set[str], counts: LineCounts
) -> Iterator[tuple[str, bytes | Failure]]:
    """(key, body of the answer or failure) of every row that `files` speak of, each key once, the first one.

    Give the file of answers before the file of errors: an answer stands against a failure. Memory: one line,
    and the keys.
    """
    seen: set[str] = set()
    for path in files:
        with path.open("rb") as stream:
            for line in stream:
                decoded = _decode(line, counts) if line.strip() else None
                if decoded is None:
                    continue
                if decoded.custom_id not in keys:
                    counts.strangers += 1
                elif decoded.custom_id in seen:
                    counts.duplicates += 1
                else:
                    seen.add(decoded.custom_id)
                    yield decoded.custom_id, _outcome(decoded)


def is_whole(files: Sequence[Path], keys: Set[str]) -> bool:
    """Whether every row has a line and every line can be read; otherwise a download may have gone wrong."""
    counts = LineCounts()
    found = sum(1 for _ in iter_results(files, keys, counts))
    return found == len(keys) and counts.torn == 0


def _decode(line: bytes, counts: LineCounts) -> _Line | None:
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        counts.torn += 1
        return None


def _outcome(line: _Line) -> bytes | Failure:
    if line.response is not None:
        body = bytes(line.response.body)
        if line.response.status_code == 200:
            return body
        code, message = parse_error(body)
        return classify_status(line.response.status_code, code, message, None)
    code = (line.error and line.error.code) or ""
    message = (line.error and line.error.message) or "the line has neither an answer nor an error"
    if code in _NEVER_EXECUTED:
        return Failure("retry", _NEVER_EXECUTED[code], message)
    return classify_status(500, code, message, None)
