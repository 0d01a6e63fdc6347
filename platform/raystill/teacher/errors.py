"""How a row fails without failing its run."""

from __future__ import annotations


class EngineRowError(Exception):
    """One row can't be done. Becomes a reject with `code` and `reason`, never a training row."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class EngineDiedError(Exception):
    """The engine's process is gone. The row is not to blame; the worker restarts with a new engine."""
