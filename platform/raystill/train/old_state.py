"""The state of checkpoints that older programs saved, as this one would have written it.

Version 1 had the sums of the open window as a bare list, whose meaning went by position, and at first neither
a balance of the loss terms nor counts of spikes. Where such a list is one of the first, shorter ones, the
next line of metrics.jsonl covers the steps since the resume alone; weights and data order don't depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raystill.checkpoint.store import SCHEMA_VERSION, CheckpointContent, OpenCheckpoint

State = dict[str, Any]

# The places in version 1's list, as it was last.
LISTED_SUMS = (
    "loss",
    "ce",
    "kd_kl",
    "ce_weighted",
    "kd_weighted",
    "hidden",
    "tokens",
    "real",
    "raw",
    "squares",
)


def current_state(content: CheckpointContent | OpenCheckpoint) -> State:
    """The JSON state of `content` in this program's schema; the checkpoint itself is left as it is."""
    state = content.state
    for version in range(content.schema_version, SCHEMA_VERSION):
        state = _MIGRATIONS[version](state)
    return state


def _name_window_sums(state: State) -> State:
    """1 -> 2: sums by name; absent parts stay absent, for they begin at their defaults."""
    values = state.get("window_sums", [])
    named = dict(zip(LISTED_SUMS, values, strict=True)) if len(values) == len(LISTED_SUMS) else {}
    return {"balance": {}, **state, "window_sums": named}


def _keep(state: State) -> State:
    """2 -> 3: only the files of the tensors may be others."""
    return state


_MIGRATIONS: dict[int, Callable[[State], State]] = {1: _name_window_sums, 2: _keep}
