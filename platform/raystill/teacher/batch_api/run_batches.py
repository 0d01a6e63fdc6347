"""The driver's side of the Batch API: what is pending goes out in batches, what is answered comes home.

Every step is on the disk before the next one begins (`BatchBook`), so a driver that dies is resumed where it
stood: rows of a batch that lives are never asked for again, and results are taken whenever they are ready.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from raystill.errors import RemoteError
from raystill.run.events import EventLog
from raystill.run.failpoint import failpoint
from raystill.run.publish import publish_file
from raystill.store.identity import partition_of
from raystill.store.records import Reject
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter
from raystill.teacher.api.guard import OutcomeGuard
from raystill.teacher.api.ledger import ledger_directory, load_spending
from raystill.teacher.api.reader import AnswerReader
from raystill.teacher.api.wire import BodyShape
from raystill.teacher.batch_api.arrived import ArrivedEngine
from raystill.teacher.batch_api.book import BatchBook
from raystill.teacher.batch_api.endpoint import BatchEndpoint, BatchFacts
from raystill.teacher.batch_api.plan import (
    BatchLimits,
    BatchLine,
    LineMaker,
    attempts_of,
    cut_batch,
    iter_cut,
)
from raystill.teacher.batch_api.record import BatchRecord
from raystill.teacher.batch_api.results import is_whole
from raystill.teacher.batch_api.settle import Settlement, Settler, was_too_much
from raystill.teacher.progress import Progress
from raystill.teacher.row_work import GenerateWork, Row
from raystill.teacher.shards import Shard

_DOWNLOADS = 3
_BUDGET_KEY = "teacher.closed.budget.max_cost_usd"


@dataclass(frozen=True)
class BatchSettings:
    """How a run uses the Batch API; nothing in it is secret. Times in seconds."""

    shape: BodyShape
    reader: AnswerReader
    where: str
    max_attempts: int
    max_cost_usd: float | None = None
    limits: BatchLimits = field(default_factory=BatchLimits)
    max_live: int = 16
    first_poll_s: float = 2.0
    longest_poll_s: float = 60.0


def run_batches(
    shards: Sequence[Shard],
    build_endpoint: Callable[[], BatchEndpoint],
    store: TeacherStore,
    work: GenerateWork,
    settings: BatchSettings,
    events: EventLog,
) -> Progress:
    """Do all rows of `shards` in batches, and what earlier runs left at the provider. Ray is not needed.

    `build_endpoint` is called inside the event loop. Emits `progress` events, with `batches` and `cost_usd`.
    An interrupt leaves batches running: the next run takes their results. Raises RemoteError for an endpoint
    that refuses and for a budget that is used up, EnvironmentFault where another run looks after this
    store's batches.
    """
    book = BatchBook(store.layout.batches)
    with book.hold(), PartWriter(store) as writer:
        book.sweep()
        settler = Settler(
            store=store,
            work=work,
            writer=writer,
            book=book,
            engine=ArrivedEngine(settings.reader),
            guard=OutcomeGuard(settings.where),
            max_attempts=settings.max_attempts,
            where=settings.where,
        )
        run = _BatchRun(shards, settler, settings, events)
        try:
            return asyncio.run(run.go(build_endpoint))
        except KeyboardInterrupt:
            events.emit("note", message=run.farewell())
            raise


class _BatchRun:
    """One run's look after its batches: `_live` are those that aren't settled, by name."""

    def __init__(
        self, shards: Sequence[Shard], settler: Settler, settings: BatchSettings, events: EventLog
    ) -> None:
        self._shards, self._settler, self._settings, self._events = shards, settler, settings, events
        self._store, self._book, self._writer = settler.store, settler.book, settler.writer
        self._lines = LineMaker(settings.shape, settler.work.request_of, settings.reader.worst_usd)
        self._limits = settings.limits
        self._live: dict[str, BatchRecord] = {}
        self._attempts: dict[str, int] = {}
        self._left: BatchLine | None = None
        self._is_held_back = False
        self._progress = Progress(total=sum(shard.num_rows for shard in shards))
        self._started = time.monotonic()

    async def go(self, build_endpoint: Callable[[], BatchEndpoint]) -> Progress:
        """Until every row is stored or rejected."""
        spending = load_spending(self._store)
        self._committed_usd = spending.spent_usd + spending.at_risk_usd
        self._adopt()
        fresh = self._iter_fresh()
        async with build_endpoint() as self._endpoint:
            pause = self._settings.first_poll_s
            while True:
                await self._start_batches(fresh)
                self._emit()
                if not self._live:
                    return self._progress
                if await self._take_results():
                    pause = self._settings.first_poll_s
                    continue
                await asyncio.sleep(pause)
                pause = min(self._settings.longest_poll_s, pause * 1.5)

    def farewell(self) -> str:
        """What an interrupted user should know."""
        running = [record for record in self._live.values() if record.is_paid_for]
        rows = sum(len(record.keys) for record in running)
        return (
            f"{len(running)} batches with {rows} rows go on at the provider, and are paid for: run again to "
            "take their results"
        )

    def _adopt(self) -> None:
        """Take over what earlier runs left. What was never created and isn't wanted any more is forgotten."""
        self._live = {record.name: record for record in self._book.load() if record.state != "settled"}
        waiting = [record for record in self._live.values() if not record.is_paid_for]
        unwanted = {key for record in waiting for key in record.keys}
        for shard in self._shards if unwanted else ():
            unwanted.difference_update(row["key"] for row in shard.read())
        for record in waiting:
            # An upload may have been followed by a creation that nobody wrote down.
            if record.state == "planned" and not unwanted.isdisjoint(record.keys):
                self._attempts.update(record.attempts)
                self._book.discard(record)
                del self._live[record.name]

    def _iter_fresh(self) -> Iterator[BatchLine]:
        """Lines of the rows that no live batch holds."""
        in_hand = {key for record in self._live.values() for key in record.keys}
        for shard in self._shards:
            for row in shard.read():
                if row["key"] in in_hand:
                    continue
                line = self._lines.make(row)
                if len(line.line) > self._settings.limits.max_bytes:
                    self._reject_too_long(row, len(line.line))
                else:
                    yield line

    def _reject_too_long(self, row: Row, num_bytes: int) -> None:
        reason = f"{num_bytes} bytes, and a batch may have {self._settings.limits.max_bytes}"
        reject = Reject(row["key"], row["prompt_id"], "generate", "prompt_too_long", reason, attempts=0)
        partition = partition_of(row["key"], self._store.num_partitions)
        self._writer.commit_rejects(partition, [reject])
        self._progress.rejected += 1

    async def _start_batches(self, fresh: Iterator[BatchLine]) -> None:
        """Create what waits, then what is still to be planned, as far as the budget goes.

        Raises RemoteError where it allows nothing more and nothing is running that may give back.
        """
        for record in [record for record in self._live.values() if not record.is_paid_for]:
            if self._is_held_back:
                return
            if record.state == "planned" and not self._affords(record.reserved_usd):
                self._require_running(record.reserved_usd)
                return
            await self._create(record)
        while len(self._live) < self._settings.max_live and not self._is_held_back:
            batch, self._left = cut_batch(fresh, self._left, self._limits, self._remaining_usd())
            if not batch:
                if self._left is not None:
                    self._require_running(self._left.worst_usd)
                return
            await self._create(self._plan(batch, self._attempts))

    def _plan(self, batch: list[BatchLine], attempts: dict[str, int]) -> BatchRecord:
        rows = [line.row for line in batch]
        worst = sum(line.worst_usd for line in batch)
        record = self._book.add(rows, (line.line for line in batch), attempts_of(batch, attempts), worst)
        self._live[record.name] = record
        return record

    async def _create(self, record: BatchRecord) -> None:
        """Upload and create a batch; what a run before this one may have created is looked for first."""
        facts: BatchFacts | None = None
        if record.state == "uploaded":
            facts = await self._endpoint.find(record.name, record.created_at)
        else:
            file_id = await self._endpoint.upload(self._book.requests_path(record))
            failpoint("batch:before_uploaded")
            record = self._save(record, state="uploaded", input_file_id=file_id)
        if facts is None:
            facts = await self._endpoint.create(record.input_file_id, record.name, record.created_at)
        failpoint("batch:before_created")
        self._save(record, state="created", batch_id=facts.id)
        failpoint("batch:after_created")
        self._events.emit("batch_created", batch=record.name, provider_id=facts.id, rows=len(record.keys))

    async def _take_results(self) -> bool:
        """Ask for every batch that runs, and settle those that have ended. Whether there were any."""
        has_news = False
        for record in list(self._live.values()):
            if record.state == "created":
                facts = await self._endpoint.retrieve(record.batch_id)
                if facts.has_ended:
                    record = self._save(record, state="ended", **_ending(facts))
                    failpoint("batch:after_ended")
            if record.state == "ended":
                await self._settle(record)
                has_news = has_news or not was_too_much(record)
        return has_news

    async def _settle(self, record: BatchRecord) -> None:
        """Take a batch's results; rows to be asked again are planned before it counts as settled."""
        await self._download(record)
        settlement = await self._settler.settle(record)
        self._write_risks(record, settlement)
        is_too_much = was_too_much(record)
        if is_too_much:
            self._limits = replace(self._limits, max_rows=len(record.keys) // 2)
        elif record.status == "completed":
            most = self._settings.limits.max_rows
            self._limits = replace(self._limits, max_rows=min(most, 2 * self._limits.max_rows))
        planned = {key for other in self._live.values() if other.name > record.name for key in other.keys}
        again = [self._lines.make(row) for row in settlement.again if row["key"] not in planned]
        for batch in iter_cut(again, self._limits):
            self._plan(batch, settlement.attempts)
        failpoint("batch:before_settled")
        self._book.settle(record, settlement.cost_usd)
        del self._live[record.name]
        self._is_held_back = is_too_much and any(other.is_paid_for for other in self._live.values())
        self._count(record, settlement)
        if settlement.error is not None:
            raise settlement.error

    async def _download(self, record: BatchRecord) -> None:
        """Fetch the result files, again where lines are torn or missing: rather than paying twice."""
        paths = self._book.result_paths(record)
        ids = [file_id for file_id in (record.output_file_id, record.error_file_id) if file_id]
        for _ in range(_DOWNLOADS if ids else 0):
            for path, file_id in zip(paths, ids, strict=True):
                await self._endpoint.download(file_id, path)
            if is_whole(paths, set(record.keys)):
                return

    def _write_risks(self, record: BatchRecord, settlement: Settlement) -> None:
        """One file per batch, written whole: settling twice counts once."""
        if not settlement.risks:
            return
        with publish_file(ledger_directory(self._store) / f"{record.name}.jsonl") as temporary:
            lines = [json.dumps(asdict(entry)) + "\n" for entry in settlement.risks]
            temporary.write_text("".join(lines), encoding="utf-8")

    def _count(self, record: BatchRecord, settlement: Settlement) -> None:
        self._progress.done += settlement.done
        self._progress.rejected += settlement.rejected
        self._progress.tokens += settlement.tokens
        self._committed_usd += settlement.cost_usd + sum(entry.at_risk_usd for entry in settlement.risks)
        self._events.emit(
            "batch_settled",
            batch=record.name,
            status=record.status,
            error=record.error,
            done=settlement.done,
            rejected=settlement.rejected,
            asked_again=len(settlement.again),
            cost_usd=round(settlement.cost_usd, 6),
            **vars(settlement.lines),
        )

    def _save(self, record: BatchRecord, **changes: str) -> BatchRecord:
        changed = self._book.save(record, **changes)
        self._live[record.name] = changed
        return changed

    def _remaining_usd(self) -> float | None:
        if self._settings.max_cost_usd is None:
            return None
        reserved = sum(record.reserved_usd for record in self._live.values() if record.state != "planned")
        return self._settings.max_cost_usd - self._committed_usd - reserved

    def _affords(self, amount: float) -> bool:
        remaining = self._remaining_usd()
        return remaining is None or amount <= remaining * (1.0 + 1e-12)

    def _require_running(self, amount: float) -> None:
        if any(record.is_paid_for for record in self._live.values()):
            return
        raise RemoteError(
            f"the budget is used up: ${self._committed_usd:.4f} of ${self._settings.max_cost_usd or 0.0:.4f} "
            f"spent or at risk, and the next request could cost ${amount:.4f}",
            where=_BUDGET_KEY,
            fix=f"raise {_BUDGET_KEY} and run again: every answer is kept, and only missing rows are asked",
        )

    def _emit(self) -> None:
        self._progress.seconds = time.monotonic() - self._started
        self._progress.emit(self._events, batches=len(self._live), cost_usd=round(self._committed_usd, 6))


def _ending(facts: BatchFacts) -> dict[str, str]:
    code, message = facts.error
    return {
        "status": facts.status,
        "output_file_id": facts.output_file_id or "",
        "error_file_id": facts.error_file_id or "",
        "error": f"{code}: {message}" if code or message else "",
    }
