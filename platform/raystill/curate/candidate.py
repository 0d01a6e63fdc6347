"""One stored row as the filters see it, and what they say about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Drop:
    """Why a row is left out: a code that is counted, and a detail that is not."""

    code: str
    detail: str = ""


@dataclass(frozen=True)
class Candidate:
    """A teacher's answer. `messages` and `tool_calls` are JSON texts, `num_tokens` None where nothing says.

    `prompt_id`, `split`, `source` and `task` are this run's, whichever run paid for the row.
    """

    key: str
    prompt_id: str
    split: str
    source: str
    task: str
    sample_index: int
    messages: str
    completion: str
    finish_reason: str
    tool_calls: str | None
    num_tokens: int | None

    @cached_property
    def prompt(self) -> str:
        """What the users of the conversation said. System messages are shared by rows and tell none apart."""
        parsed: list[dict[str, Any]] = json.loads(self.messages)
        said = [message.get("content") for message in parsed if message.get("role") == "user"]
        return "\n".join(text for text in said if isinstance(text, str))


Check = Callable[[Candidate], Drop | None]
"""A filter that looks at one row alone: None keeps it."""
