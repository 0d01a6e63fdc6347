"""Rows whose normalised prompt and completion are equal: the first is kept."""

from __future__ import annotations

from collections.abc import Sequence

from raystill.curate.candidate import Drop
from raystill.curate.facts import Fact


def find_exact_duplicates(facts: Sequence[Fact]) -> dict[str, Drop]:
    """Keys to drop, each naming the row that stands for it."""
    kept: dict[bytes, str] = {}
    drops: dict[str, Drop] = {}
    for fact in sorted(facts, key=lambda fact: fact.order):
        first = kept.setdefault(fact.digest, fact.key)
        if first != fact.key:
            drops[fact.key] = Drop("exact_duplicate", f"of {first}")
    return drops
