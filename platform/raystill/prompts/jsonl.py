"""JSON Lines: one object per line. A file that is one JSON array of objects is read as well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raystill.errors import DataError
from raystill.prompts.rows import BadRow, RawRow, excerpt_of

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def iter_jsonl(path: Path) -> Iterator[RawRow | BadRow]:
    """Rows of a file, in order; blank lines are no rows. A UTF-8 byte order mark and CRLF are accepted.

    Raises DataError if the file is a JSON array that doesn't parse as a whole.
    """
    if _starts_with_bracket(path):
        yield from _iter_array(path)
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                yield _parse_line(f"{path}:{number}", line)


def _starts_with_bracket(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"["


def _iter_array(path: Path) -> Iterator[RawRow | BadRow]:
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"the file is a JSON array that doesn't parse: {_explain(error)}",
            where=str(path),
            fix="repair it, or write one JSON object per line",
        ) from error
    for index, value in enumerate(values):
        yield _as_row(f"{path}[{index}]", value)


def _parse_line(where: str, line: bytes) -> RawRow | BadRow:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(where, "utf8", f"not UTF-8 (byte {error.start + 1})", excerpt_of(line.strip()))
    try:
        return _as_row(where, json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        return BadRow(where, "json", f"not JSON: {_explain(error)}", excerpt_of(text.strip()))


def _as_row(where: str, value: Any) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(where, value)
    return BadRow(where, "type", f"a {type(value).__name__} instead of an object", excerpt_of(value))


def _explain(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start + 1})"
    if not isinstance(error, json.JSONDecodeError):
        return "nested too deeply"
    before = error.doc[: error.pos].rstrip()
    after = error.doc[error.pos :].lstrip()
    if before.endswith(",") and after[:1] in ("}", "]"):
        return f"trailing comma at column {error.colno}"
    return f"{error.msg} at column {error.colno}"
