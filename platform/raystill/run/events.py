"""The run's log: one JSON object per event, with stable names, appended to logs/run.jsonl.

Every object has `time` (seconds since 1970), `stage` and `event`; what else it has depends on the event.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from raystill.run.publish import make_directory

# What others may rely on: names are added here, never changed.
EventName = Literal[
    "stage_started", "stage_finished", "stage_failed", "progress", "note", "warning", "disk",
    "waiting_for_nodes", "nodes_came",
    "requests_planned", "scores_planned", "engine_starting", "probe", "store_set_aside",
    "batch_created", "batch_settled",
    "checkpoint_saved", "checkpoints_copied", "checkpoints_deleted",
    "model_started", "model_measured", "models_compared",
    "weights_written", "verification_started", "verification_skipped", "verified", "not_uploaded",
    "trial_started", "trial_reported", "trial_finished",
]  # fmt: skip


class EventLog:
    """Appends events of one stage. A context manager; lines are flushed as they are written."""

    def __init__(
        self, path: Path, stage: str, on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """Open `path` for `stage`; `on_event` also gets every event, for a terminal that shows progress."""
        self._path = path
        self._stage = stage
        self._on_event = on_event
        make_directory(path.parent)
        torn = _ends_torn(path)
        self._stream = path.open("a", encoding="utf-8")
        if torn:
            self._stream.write("\n")

    def emit(self, event: EventName, **fields: Any) -> None:
        """Append one event; `fields` must be JSON-able."""
        record = {"time": round(time.time(), 3), "stage": self._stage, "event": event, **fields}
        self._stream.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
        self._stream.flush()
        if self._on_event is not None:
            self._on_event(record)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.emit("stage_failed", error=type(error).__name__)
        self._stream.close()


def seconds_left(first: Mapping[str, Any], latest: Mapping[str, Any]) -> float | None:
    """Seconds until `total`, from two `progress` events of one start of a stage; None where they can't say.

    A stage's own `eta_seconds` counts. Else the pace is that since the stage's first event: what came before
    it was starting up, or, in a stage that goes on, done by an earlier process.
    """
    own = latest.get("eta_seconds")
    if own is not None:
        return float(own)
    total = latest.get("total")
    if total is None or total <= latest.get("done", 0):
        return None
    finished = latest.get("done", 0) - first.get("done", 0)
    elapsed = latest.get("time", 0.0) - first.get("time", 0.0)
    if finished <= 0 or elapsed <= 0:
        return None
    return float(elapsed * (total - latest["done"]) / finished)


def _ends_torn(path: Path) -> bool:
    """A kill in the middle of a write leaves half a line; the next event must not be glued to it."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
