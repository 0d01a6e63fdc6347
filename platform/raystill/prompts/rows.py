"""What a source yields: rows as they were read, or the reason why a row could not be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EXCERPT_LENGTH = 80


@dataclass(frozen=True)
class RawRow:
    """One row of a source. `where` is `file:line` or `file[row]`."""

    where: str
    value: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that can't become a prompt: a stable `code`, a `reason` in words, and how the row begins."""

    where: str
    code: str
    reason: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f": {self.excerpt}" if self.excerpt else "")


def excerpt_of(value: Any) -> str:
    """The first characters of a row, printable on any terminal and encodable as UTF-8."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    head = text[: EXCERPT_LENGTH + 1].encode("utf-8", "backslashreplace").decode("utf-8")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in head)
    return shown if len(shown) <= EXCERPT_LENGTH else shown[: EXCERPT_LENGTH - 3] + "..."
