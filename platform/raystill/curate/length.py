"""Completions that are too short or too long."""

from __future__ import annotations

from dataclasses import dataclass

from raystill.curate.candidate import Candidate, Drop


@dataclass(frozen=True)
class LengthCheck:
    """Bounds in tokens, both included. A row whose length nobody knows (an endpoint without usage) passes."""

    min_tokens: int
    max_tokens: int | None

    def __call__(self, row: Candidate) -> Drop | None:
        """None keeps the row."""
        if row.num_tokens is None:
            return None
        if row.num_tokens < self.min_tokens:
            return Drop("too_short", f"{row.num_tokens} tokens")
        if self.max_tokens is not None and row.num_tokens > self.max_tokens:
            return Drop("too_long", f"{row.num_tokens} tokens")
        return None
