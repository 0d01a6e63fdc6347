"""How `store stats` and `status` show batches that a provider works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raystill.cli.terminal import human_seconds, make_table, print_table

if TYPE_CHECKING:
    from raystill.teacher.batch_api.overview import LiveBatch


def print_batches(batches: Sequence[LiveBatch]) -> None:
    """One line per batch; nothing where there are none."""
    if not batches:
        return
    columns = {"batch": False, "state": False, "requests": True, "age": True, "at most": True}
    rows = [
        (
            batch.batch_id or batch.name,
            f"{batch.state} ({batch.status})" if batch.status else batch.state,
            f"{batch.requests:,}",
            human_seconds(batch.age_seconds),
            f"${batch.reserved_usd:,.4f}",
        )
        for batch in batches
    ]
    print_table(make_table("Batches at the provider", columns, rows))
