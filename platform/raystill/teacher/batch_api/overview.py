"""Which batches of a store are still at work, for people who wait for them. Asks nobody, changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from raystill.store.layout import StoreLayout
from raystill.teacher.batch_api.record import State, load_records


@dataclass(frozen=True)
class LiveBatch:
    """A batch that isn't settled. `batch_id` is the provider's ("" before it has one), `status` its word.

    `reserved_usd` is the most that the batch can cost.
    """

    batch_id: str
    name: str
    state: State
    status: str
    requests: int
    age_seconds: float
    reserved_usd: float


def list_live_batches(store: Path) -> list[LiveBatch]:
    """Batches of the store at `store`, oldest first; none where there is no such store.

    Raises DataError for a record that can't be read.
    """
    now = time.time()
    return [
        LiveBatch(
            batch_id=record.batch_id,
            name=record.name,
            state=record.state,
            status=record.status,
            requests=len(record.keys),
            age_seconds=round(max(0.0, now - record.created_at), 1),
            reserved_usd=record.reserved_usd,
        )
        for record in load_records(StoreLayout(store).batches)
        if record.state != "settled"
    ]
