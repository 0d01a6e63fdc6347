"""How far a job is, and the `progress` events that say so."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raystill.run.events import EventLog

if TYPE_CHECKING:
    import pyarrow as pa

_EVENT_SECONDS = 2.0


@dataclass
class Progress:
    """Rows and completion tokens done by this process; `total` is what it set out to do.

    The tail begins when fewer than `capacity` rows are left, which is what all engines hold together.
    `amounts` are what workers report besides, by column: requests and costs of an endpoint.
    """

    total: int
    capacity: int = 0
    done: int = 0
    rejected: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tail_started: float | None = None
    amounts: dict[str, float] = field(default_factory=dict)

    def add(self, records: pa.Table) -> None:
        """Add what workers report: columns done, rejected, tokens, and those of `amounts`."""
        for name in ("done", "rejected", "tokens"):
            setattr(self, name, getattr(self, name) + sum(records.column(name).to_pylist()))
        for name in self.amounts:
            self.amounts[name] += sum(records.column(name).to_pylist())
        if self.tail_started is None and self.total - self.done - self.rejected < self.capacity:
            self.tail_started = self.seconds

    @property
    def tail_fraction(self) -> float:
        """Share of the time in which fewer rows were left than the engines could hold."""
        if self.seconds <= 0 or self.tail_started is None:
            return 0.0
        return (self.seconds - self.tail_started) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens per second since the first engine was up."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def emit(self, events: EventLog, **more: Any) -> None:
        """A `progress` event: done, total, unit, tokens_per_s, rejected, the amounts, `more`, eta_seconds."""
        finished = self.done + self.rejected
        left = self.total - finished
        rate = finished / self.seconds if self.seconds > 0 else 0.0
        events.emit(
            "progress",
            done=min(finished, self.total),
            total=self.total,
            unit="rows",
            tokens_per_s=round(self.tokens_per_s, 1),
            rejected=self.rejected,
            **{name: round(amount, 6) for name, amount in self.amounts.items()},
            **more,
            eta_seconds=round(left / rate, 1) if rate and left > 0 else None,
        )


def follow(records: Iterable[pa.Table], progress: Progress, events: EventLog) -> Iterator[pa.Table]:
    """Pass on what workers report, added to `progress`; an event every two seconds, and one at the end.

    The clock starts with the first record, which says only that an engine is up.
    """
    started: float | None = None
    next_event = 0.0
    for record in records:
        now = time.monotonic()
        started = started or now
        progress.seconds = now - started
        progress.add(record)
        if now >= next_event:
            progress.emit(events)
            next_event = now + _EVENT_SECONDS
        yield record
    progress.emit(events)
