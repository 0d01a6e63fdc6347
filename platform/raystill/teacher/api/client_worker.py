"""The actor that sends a share of a run's requests. Ray Data gives it shards; rows of several are in flight.

An answer counts as done once the journal holds it. An error that stops the run closes the gate for every
worker; requests that are in flight then still end and are stored, because they are paid for. The error
travels to the driver as a record: raising it would make Ray kill the workers in the middle of that. A job
that is told to end closes the gate in the same way, and waits a moment for what is in flight.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import ray

from raystill.config.schema import Config
from raystill.errors import EnvironmentFault, RaystillError
from raystill.store.identity import partition_of
from raystill.store.journal import JournalWriter
from raystill.store.records import RELEASED, Reject, TeacherRow
from raystill.store.recover import recover_journals
from raystill.store.rejects import load_answered
from raystill.store.store import TeacherStore
from raystill.teacher.api.address import parse_address, read_key
from raystill.teacher.api.client import ApiClient
from raystill.teacher.api.engine import ApiRowError, EngineSettings, OpenAIEngine, PaidAttempts
from raystill.teacher.api.error_record import ERROR_FIELDS, error_columns
from raystill.teacher.api.gate import Gate, GateSettings, RemoteGate, RequestGate
from raystill.teacher.api.guard import OutcomeGuard
from raystill.teacher.api.identify import require_closed_teacher
from raystill.teacher.api.ledger import RiskEntry, RiskLedger
from raystill.teacher.api.outcomes import Failure
from raystill.teacher.drain import Drain
from raystill.teacher.engine import Generation
from raystill.teacher.milestones import Milestones
from raystill.teacher.row_work import GenerateWork, Row
from raystill.teacher.shards import Shard, shards_from_table
from raystill.text.chat import load_chat_format

COUNTERS = ("done", "rejected", "tokens", "requests", "retries", "in_flight", "http_429", "http_5xx")
COSTS = ("cost_usd", "at_risk_usd")
_DRAIN_POLL_SECONDS = 0.05
RECORD_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.int64()) for name in COUNTERS),
        *(pa.field(name, pa.float64()) for name in COSTS),
        *ERROR_FIELDS,
    ]
)


@dataclass(frozen=True)
class ClientBlueprint:
    """What a worker needs. Nothing in it is secret: the key is read from the worker's own environment.

    `gate` is the actor that the workers share, None where there is one worker.
    """

    config: Config
    settings: EngineSettings
    gate_settings: GateSettings
    gate: Any
    num_clients: int
    checks_ids: bool
    has_chat: bool


class _Tally:
    """What this worker has to report; written by the loop, read by one task's thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news: dict[str, float] = dict.fromkeys((*COUNTERS, *COSTS), 0)

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._news[name] += amount

    def take(self, error: RaystillError | None = None) -> pa.Table:
        """What is new since the last call, as one record."""
        with self._lock:
            news, self._news = self._news, dict.fromkeys(self._news, 0)
        values = {**{name: [news[name]] for name in (*COUNTERS, *COSTS)}, **error_columns(error)}
        return pa.table(values, schema=RECORD_SCHEMA)


class ClientWorker:
    """A Ray Data UDF: blocks of shard descriptors in, progress records out, answers in the journal."""

    def __init__(
        self, blueprint: ClientBlueprint, store: TeacherStore, work: GenerateWork, drain: Drain
    ) -> None:
        """Start an event loop; the client starts with the first shard."""
        self._blueprint, self._store, self._work = blueprint, store, work
        self._job_drain = drain
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="client-loop", daemon=True).start()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="client-disk")
        self._journal: JournalWriter | None = None
        self._ledger = RiskLedger(store)
        self._tally = _Tally()
        self._guard = OutcomeGuard(blueprint.settings.where)
        self._error: RaystillError | None = None
        self._active_shards = 0
        self._prompt_ids: dict[str, str] = {}
        self._paid: set[asyncio.Task[None]] = set()
        self._starting: Future[None] | None = None
        self._start_lock = threading.Lock()
        self._is_restarted = ray.get_runtime_context().was_current_actor_reconstructed

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Do the shards of a block; yields what is new at each milestone, an error as the last record."""
        with self._start_lock:
            if self._starting is None:
                self._starting = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        try:
            self._starting.result()
        except RaystillError as error:
            self._error = error
        for shard in shards_from_table(block):
            yield self._tally.take()
            if self._error is None:
                milestones = Milestones(shard.num_rows)
                running = asyncio.run_coroutine_threadsafe(self._run_shard(shard, milestones), self._loop)
                running.add_done_callback(milestones.end)
                for _ in milestones.wait_each():
                    yield self._tally.take()
                running.result()
            yield self._tally.take(self._error)

    async def _start(self) -> None:
        blueprint = self._blueprint
        closed = require_closed_teacher(blueprint.config)
        self._gate: Gate = (
            RequestGate(blueprint.gate_settings) if blueprint.gate is None else RemoteGate(blueprint.gate)
        )
        tokenizer = closed.model.tokenizer
        self._client = ApiClient(
            parse_address(closed.endpoint),
            read_key(closed.endpoint),
            timeout_s=closed.endpoint.request_timeout_s,
            connections=blueprint.settings.max_in_flight,
            checks_ids=blueprint.checks_ids,
        )
        self._engine = OpenAIEngine(
            blueprint.settings,
            self._client,
            self._gate,
            observer=self,
            chat=load_chat_format(tokenizer) if blueprint.has_chat and tokenizer is not None else None,
        )
        self._slots = asyncio.Semaphore(max(1, self._engine.rows_in_flight // blueprint.num_clients))
        self._job_drain.join(ray.get_runtime_context().get_actor_id(), self._drain)

    def _drain(self) -> None:
        """Ask for nothing more, and return when all that was in flight is stored. For a thread of its own."""
        asyncio.run_coroutine_threadsafe(self._end_early(), self._loop).result()

    async def _end_early(self) -> None:
        await self._stop(EnvironmentFault("the run was told to end"))
        while self._active_shards:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)

    async def _run_shard(self, shard: Shard, milestones: Milestones) -> None:
        self._active_shards += 1
        try:
            rows = await self._on_disk(self._load, shard)
            milestones.advance(shard.num_rows - len(rows))
            tasks = [asyncio.create_task(self._run_row(row)) for row in rows]
            for task in tasks:
                task.add_done_callback(lambda _: milestones.advance(1))
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        except RaystillError as error:
            await self._stop(error)
            outcomes = []
        finally:
            self._active_shards -= 1
            if self._active_shards == 0:
                await self._seal()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _run_row(self, row: Row) -> None:
        self._prompt_ids[row["key"]] = row["prompt_id"]
        try:
            async with self._slots:
                if self._error is not None:
                    return
                record, counts = await self._ask(row)
            await self._save(record)
            self._tally.add(**counts)
        except RaystillError as error:
            await self._stop(error)
        finally:
            self._prompt_ids.pop(row["key"], None)

    async def _ask(self, row: Row) -> tuple[TeacherRow | Reject, dict[str, float]]:
        """The row's record, and what it adds to the tally once it is durable."""
        try:
            answer = await self._work.run(self._engine, row)
        except ApiRowError as error:
            stop = self._guard.on_given_up(row["prompt_id"], error.failure)
            if stop is not None:
                await self._stop(stop)
            usage = error.failure.usage
            reject = _reject(row["key"], row["prompt_id"], error.failure, error.attempts, error.cost_usd)
            if usage is not None:
                reject = replace(reject, usage=json.dumps(asdict(usage), sort_keys=True))
            return reject, {"rejected": 1, "cost_usd": error.cost_usd}
        self._guard.on_answer()
        assert isinstance(answer.result, Generation)
        usage = answer.result.usage
        tokens = answer.num_tokens if usage is None else usage.completion_tokens
        record = self._work.teacher_row(answer)
        return record, {"done": 1, "tokens": tokens, "cost_usd": record.cost_usd}

    async def _save(self, record: TeacherRow | Reject) -> None:
        """Return once the journal holds the record."""
        await asyncio.wrap_future(await self._on_disk(self._append, record))

    def _append(self, record: TeacherRow | Reject) -> Future[None]:
        if self._journal is None:
            self._journal = JournalWriter(self._store)
        return self._journal.append(partition_of(record.key, self._store.num_partitions), record)

    async def _seal(self) -> None:
        """Turn the journal into parts: no shard is active, and the process may end any time."""
        try:
            while self._paid:
                await asyncio.gather(*self._paid)
            await self._on_disk(self._close_journal)
        except RaystillError as error:
            await self._stop(error)

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def _load(self, shard: Shard) -> list[Row]:
        rows = shard.read()
        if not self._is_restarted:
            return rows
        # The process before this one may have stored part of the shard.
        recover_journals(self._store)
        answered = load_answered(self._store, shard.partition)
        pending = answered.is_pending(pa.array([row["key"] for row in rows], pa.string()))
        return [row for row, is_pending in zip(rows, pending.to_pylist(), strict=True) if is_pending]

    async def _stop(self, error: RaystillError) -> None:
        if self._error is None:
            self._error = error
            await self._gate.close(error)

    def on_request(self, is_retry: bool) -> None:
        """See `RequestObserver`."""
        self._tally.add(requests=1, retries=int(is_retry), in_flight=1)

    def on_ended(self, failure: Failure | None) -> None:
        """See `RequestObserver`."""
        said = "" if failure is None else failure.message
        throttled, failed = said.startswith("HTTP 429"), said.startswith("HTTP 5")
        self._tally.add(in_flight=-1, http_429=int(throttled), http_5xx=int(failed))

    def on_risk(self, entry: RiskEntry) -> None:
        """See `RequestObserver`."""
        self._tally.add(at_risk_usd=entry.at_risk_usd)
        self._remember(self._on_disk(self._ledger.append, [entry]))

    def on_paid(self, paid: PaidAttempts) -> None:
        """See `RequestObserver`."""
        self._tally.add(cost_usd=paid.cost_usd)
        # Not a verdict: the row has its answer, or is asked again by the next run.
        failure = Failure("retry", RELEASED, f"{paid.code}: {paid.reason}")
        prompt_id = self._prompt_ids.get(paid.key, "")
        self._remember(self._save(_reject(paid.key, prompt_id, failure, paid.attempts, paid.cost_usd)))

    def _remember(self, saving: Coroutine[Any, Any, None]) -> None:
        """Save in the background; the journal is not closed before that."""
        task = asyncio.create_task(saving)
        self._paid.add(task)
        task.add_done_callback(self._paid.discard)

    async def _on_disk(self, function: Any, *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._disk, function, *arguments)


def _reject(key: str, prompt_id: str, failure: Failure, attempts: int, cost_usd: float) -> Reject:
    return Reject(key, prompt_id, "generate", failure.code, failure.message, attempts, cost_usd)
