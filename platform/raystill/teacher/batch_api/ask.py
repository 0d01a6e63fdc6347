"""From a checked endpoint to a run through its Batch API."""

from __future__ import annotations

from raystill.errors import ConfigError
from raystill.run.stage import StageContext
from raystill.store.store import TeacherStore
from raystill.teacher.api.address import read_key
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.identify import KnownEndpoint
from raystill.teacher.api.probe import Capabilities
from raystill.teacher.api.reader import AnswerReader
from raystill.teacher.batch_api.book import BatchBook
from raystill.teacher.batch_api.endpoint import BatchEndpoint
from raystill.teacher.batch_api.run_batches import BatchSettings, run_batches
from raystill.teacher.plan_requests import RequestPlan
from raystill.teacher.progress import Progress
from raystill.teacher.row_work import GenerateWork


def ask_in_batches(
    context: StageContext,
    endpoint: KnownEndpoint,
    known: Capabilities,
    store: TeacherStore,
    plan: RequestPlan,
    work: GenerateWork,
) -> Progress:
    """Ask for what `plan` lacks, and take what earlier runs left there. Raises like `run_batches`."""
    closed = endpoint.closed
    address, key = endpoint.address, read_key(closed.endpoint)
    settings = BatchSettings(
        shape=known.shape(closed.model.name),
        reader=AnswerReader(
            prices=Prices.from_config(closed.prices, is_batch=True),
            reasoning=endpoint.config.teacher.base.reasoning,
            chat=endpoint.chat,
        ),
        where=endpoint.where,
        max_attempts=closed.endpoint.max_attempts,
        max_cost_usd=closed.budget.max_cost_usd,
    )
    return run_batches(
        plan.shards,
        lambda: BatchEndpoint(
            address,
            key,
            timeout_s=closed.endpoint.request_timeout_s,
            max_attempts=closed.endpoint.max_attempts,
        ),
        store,
        work,
        settings,
        context.events,
    )


def has_live_batches(store: TeacherStore) -> bool:
    """Whether the provider holds rows of this store that are paid for and not taken yet."""
    return any(record.is_paid_for for record in BatchBook(store.layout.batches).load())


def require_no_live_batches(store: TeacherStore) -> None:
    """Raise ConfigError where asking online would pay again for rows that a batch holds."""
    records = [record for record in BatchBook(store.layout.batches).load() if record.is_paid_for]
    if records:
        rows = sum(len(record.keys) for record in records)
        raise ConfigError(
            f"{len(records)} batches with {rows} rows of this store are still at the provider, and paid for",
            "teacher.closed.endpoint.mode",
            "run with mode: batch until they are taken, then switch; deleting their records in "
            f"{store.layout.batches} gives them up",
        )
