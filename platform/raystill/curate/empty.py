"""Completions that say nothing."""

from __future__ import annotations

from raystill.curate.candidate import Candidate, Drop


def check_empty(row: Candidate) -> Drop | None:
    """Drops a completion without text and without a tool call."""
    if row.completion.strip() or row.tool_calls:
        return None
    return Drop("empty")
