"""What every importer yields: an answer with what is known about it, or the reason why there is none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raystill.store.records import Int32Array, TopKSignal


def no_ids() -> Int32Array:
    """Token ids of what is known as text only."""
    return np.empty(0, np.int32)


@dataclass(frozen=True)
class ImportedAnswer:
    """One answer of a foreign file. `where` is `file:line` or `file[row]`.

    `prompt_id` None: named after the conversation. `sampling` is whatever the file says about how the answer
    was drawn. Without a tokenizer there are no token ids, and then no signal either.
    """

    where: str
    messages: list[dict[str, Any]]
    completion: str
    prompt_token_ids: Int32Array = field(default_factory=no_ids)
    completion_token_ids: Int32Array = field(default_factory=no_ids)
    finish_reason: str = "stop"
    signal: TopKSignal | None = None
    prompt_id: str | None = None
    split: str | None = None
    source: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    sample_index: int = 0
    reasoning: str | None = None
    tool_calls: str | None = None
    usage: str | None = None
    flags: tuple[str, ...] = ()

    @property
    def prompt(self) -> Int32Array | str:
        """What the teacher was asked: its token ids where they are known, else the conversation."""
        if len(self.prompt_token_ids):
            return self.prompt_token_ids
        return json.dumps(self.messages, sort_keys=True, ensure_ascii=True)

    def content_sha256(self) -> str:
        """Names the answer itself: text, tool calls and token ids."""
        digest = hashlib.sha256()
        for text in (self.completion, self.tool_calls or "", self.reasoning or ""):
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        digest.update(np.ascontiguousarray(self.completion_token_ids, dtype="<i4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class BadAnswer:
    """A row of a foreign file that can't become a row of the store.

    `content` is what it holds (or its begin), from which the reject gets its key: the same bad row is the
    same reject in every import.
    """

    where: str
    code: str
    reason: str
    content: str
    prompt_id: str = ""


class RowError(Exception):
    """Inside importers only: this row can't be read. Becomes a BadAnswer."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def place(path: Path, number: int) -> str:
    """`file:line`."""
    return f"{path.name}:{number}"
