"""How completions ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from raystill.curate.candidate import Candidate, Drop


@dataclass(frozen=True)
class FinishReasonCheck:
    """Drops completions that ended in another way than one of `allowed`."""

    allowed: Collection[str]

    def __call__(self, row: Candidate) -> Drop | None:
        """None keeps the row."""
        return None if row.finish_reason in self.allowed else Drop("finish_reason", row.finish_reason)
