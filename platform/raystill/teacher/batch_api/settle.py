"""Taking a batch's results: answers into the store, failures into rejects or into the next batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from raystill.errors import RaystillError
from raystill.store.commit import load_commits
from raystill.store.identity import partition_of
from raystill.store.reader import committed_keys, read_part
from raystill.store.records import RELEASED, Reject
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter
from raystill.teacher.api.guard import OutcomeGuard
from raystill.teacher.api.ledger import RiskEntry
from raystill.teacher.api.outcomes import Failure, abort_error
from raystill.teacher.batch_api.arrived import ArrivedEngine, FailedLineError
from raystill.teacher.batch_api.book import BatchBook
from raystill.teacher.batch_api.record import BatchRecord
from raystill.teacher.batch_api.results import LineCounts, iter_results
from raystill.teacher.engine import Generation
from raystill.teacher.errors import EngineRowError
from raystill.teacher.row_work import Answer, GenerateWork, Row

# The provider's words for too many waiting requests: nobody is to blame, the rows go out in smaller batches.
_TOO_MUCH_AT_ONCE = ("token_limit_exceeded", "rate_limit_exceeded")
# Answers in memory before they become parts.
_BUFFERED_ROWS = 2048
_MISSING = Failure("retry", "missing", "the batch ended without a line for this row", may_be_billed=True)


@dataclass
class Settlement:
    """What became of a batch's rows. `again` are to be asked once more, with the batches they had in vain.

    `risks` may have been billed and are neither rows nor rejects; `error` stops the run.
    """

    done: int = 0
    rejected: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    again: list[Row] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    risks: list[RiskEntry] = field(default_factory=list)
    lines: LineCounts = field(default_factory=LineCounts)
    error: RaystillError | None = None


@dataclass(frozen=True)
class Settler:
    """Settles batches of one run. `max_attempts` batches without an answer make a row a reject."""

    store: TeacherStore
    work: GenerateWork
    writer: PartWriter
    book: BatchBook
    engine: ArrivedEngine
    guard: OutcomeGuard
    max_attempts: int
    where: str

    async def settle(self, record: BatchRecord) -> Settlement:
        """Read the downloaded results of `record` and commit them. Doing so twice changes nothing."""
        settlement = Settlement()
        rows = {row["key"]: row for row in self.book.rows(record)}
        stored = self._stored(rows)
        waiting: dict[int, list[Answer | Reject]] = defaultdict(list)
        num_waiting = 0
        heard: set[str] = set()
        files = self.book.result_paths(record)
        for key, outcome in iter_results(files, rows.keys(), settlement.lines):
            heard.add(key)
            if key in stored:
                settlement.done += 1
                continue
            result = await self._one(record, rows[key], outcome, settlement)
            if result is not None:
                waiting[self._partition(key)].append(result)
                num_waiting += 1
            if num_waiting >= _BUFFERED_ROWS:
                self._commit(waiting)
                num_waiting = 0
        failure = _failed_batch(record) or _MISSING
        for key in rows.keys() - heard - stored:
            missing = self._given_up(record, rows[key], failure, settlement)
            if missing is not None:
                waiting[self._partition(key)].append(missing)
        self._commit(waiting)
        return settlement

    async def _one(
        self, record: BatchRecord, row: Row, outcome: bytes | Failure, settlement: Settlement
    ) -> Answer | Reject | None:
        self.engine.arrive(row["key"], outcome, _share(record))
        try:
            answer = await self.work.run(self.engine, row)
        except FailedLineError as failed:
            return self._given_up(record, row, failed.failure, settlement)
        except EngineRowError as error:
            return self._given_up(record, row, Failure("reject", error.code, error.reason), settlement)
        assert isinstance(answer.result, Generation)
        usage = answer.result.usage
        self.guard.on_answer()
        settlement.done += 1
        settlement.tokens += answer.num_tokens if usage is None else usage.completion_tokens
        settlement.cost_usd += 0.0 if usage is None else usage.cost_usd
        return answer

    def _given_up(
        self, record: BatchRecord, row: Row, failure: Failure, settlement: Settlement
    ) -> Reject | None:
        """A reject, or None where the row will be asked again."""
        attempts = record.attempts.get(row["key"], 0) + (not was_too_much(record))
        cost = failure.usage.cost_usd if failure.usage is not None else 0.0
        if failure.action == "abort":
            settlement.error = settlement.error or abort_error(failure, self.where)
            return None
        if failure.usage is None and failure.may_be_billed:
            settlement.risks.append(RiskEntry(row["key"], failure.code, _share(record)))
        settlement.cost_usd += cost
        if failure.action != "reject" and attempts < self.max_attempts:
            settlement.again.append(row)
            settlement.attempts[row["key"]] = attempts
            if not cost:
                return None
            # What was billed for nothing must be found on the disk, and yet the row is still to be asked.
            failure = replace(failure, code=RELEASED, message=f"{failure.code}: {failure.message}")
        else:
            settlement.rejected += 1
            stop = self.guard.on_given_up(row["prompt_id"], failure)
            settlement.error = settlement.error or stop
        return Reject(
            row["key"], row["prompt_id"], "generate", failure.code, failure.message, attempts, cost_usd=cost
        )

    def _stored(self, rows: Collection[str]) -> set[str]:
        partitions = {self._partition(key) for key in rows}
        keys: set[str] = set()
        for partition in partitions:
            keys |= committed_keys(self.store, partition) & set(rows)
        return keys

    def _partition(self, key: str) -> int:
        return partition_of(key, self.store.num_partitions)

    def _commit(self, waiting: dict[int, list[Answer | Reject]]) -> None:
        for partition, outcomes in waiting.items():
            answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
            rejects = [outcome for outcome in outcomes if isinstance(outcome, Reject)]
            if answers:
                self.work.commit(self.writer, partition, answers)
            if rejects := self._new_rejects(partition, rejects):
                self.writer.commit_rejects(partition, rejects)
        waiting.clear()

    def _new_rejects(self, partition: int, rejects: list[Reject]) -> list[Reject]:
        """Those that a settlement which was cut short hasn't committed already."""
        if not rejects:
            return []
        columns = ("key", "code", "reason", "attempts")
        known = {
            tuple(row.values())
            for commit in load_commits(self.store, partition, "rejects")
            for row in read_part(self.store, commit, columns).select(columns).to_pylist()
        }
        return [r for r in rejects if (r.key, r.code, r.reason, r.attempts) not in known]


def was_too_much(record: BatchRecord) -> bool:
    """Whether the provider refused the batch for its size alone; a single row can't be made smaller."""
    return record.status == "failed" and record.error.startswith(_TOO_MUCH_AT_ONCE) and len(record.keys) > 1


def _share(record: BatchRecord) -> float:
    """What one row of the batch may have cost, where nobody says."""
    return record.reserved_usd / max(1, len(record.keys))


def _failed_batch(record: BatchRecord) -> Failure | None:
    """Why rows without a line have none, where the whole batch failed: then nothing was billed."""
    if record.status != "failed":
        return None
    return Failure("retry", "batch_failed", record.error or "the batch failed as a whole")
