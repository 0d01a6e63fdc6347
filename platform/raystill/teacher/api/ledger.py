"""What a store has cost, from the disk alone: rows, rejects, and requests that may be billed unanswered.

Costs of rows and rejects stand in the store's commits. Requests that ended without an answer (a timeout, a
connection that broke) are written here: JSON lines under the store, one file per process, appended and
fsynced; on object storage one object per entry or burst of entries. So a budget holds over the store's life,
and a kill loses no count.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from raystill.run.publish import disk_faults, fsync_path, make_directory
from raystill.run.remote import is_remote, put_object, read_objects
from raystill.store.commit import load_commits
from raystill.store.store import TeacherStore


@dataclass(frozen=True)
class RiskEntry:
    """A request that is neither a row nor a reject: `at_risk_usd` is the most that may be billed for it where
    no answer came, `cost_usd` what was billed for a probe.
    """

    key: str
    code: str
    at_risk_usd: float
    cost_usd: float = 0.0


@dataclass(frozen=True)
class Spending:
    """What a store has cost: rows, rejects, probes of the endpoint, and what may be billed besides."""

    rows_usd: float
    rejects_usd: float
    probes_usd: float
    at_risk_usd: float

    @property
    def spent_usd(self) -> float:
        """What was billed."""
        return self.rows_usd + self.rejects_usd + self.probes_usd


class RiskLedger:
    """Appends entries; one per process and thread. Opens its file with the first entry."""

    def __init__(self, store: TeacherStore) -> None:
        self._directory = ledger_directory(store)
        self._path = self._directory / self._new_name()
        self._stream: TextIO | None = None

    def append(self, entries: Sequence[RiskEntry]) -> None:
        """Append `entries` durably. Raises EnvironmentFault for a full disk, RemoteError where object storage
        refuses.
        """
        if not entries:
            return
        text = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
        if is_remote(self._directory):
            put_object(self._directory / self._new_name(), text.encode("utf-8"), if_absent=True)
            return
        with disk_faults(self._path):
            if self._stream is None:
                make_directory(self._path.parent)
                self._stream = self._path.open("a", encoding="utf-8")
                fsync_path(self._path.parent)
            self._stream.write(text)
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def _new_name(self) -> str:
        return f"{os.getpid()}.{secrets.token_hex(6)}.jsonl"

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def ledger_directory(store: TeacherStore) -> Path:
    """Where a store's ledger files are."""
    return store.layout.ledger


def load_spending(store: TeacherStore) -> Spending:
    """Recompute what the store has cost. Reads commit records and the ledger, no part.

    Answers that are still in a journal are not counted: recover them first.
    """
    costs: dict[str, list[float]] = {"rows": [], "rejects": []}
    for partition in range(store.num_partitions):
        # Two writers may have paid for the same key: both were billed.
        costs["rows"] += [commit.cost_usd for commit in load_commits(store, partition, "rows")]
        costs["rejects"] += [commit.cost_usd for commit in load_commits(store, partition, "rejects")]
    entries = load_risks(store)
    return Spending(
        rows_usd=math.fsum(costs["rows"]),
        rejects_usd=math.fsum(costs["rejects"]),
        probes_usd=math.fsum(entry.cost_usd for entry in entries),
        at_risk_usd=math.fsum(entry.at_risk_usd for entry in entries),
    )


def load_risks(store: TeacherStore) -> list[RiskEntry]:
    """Every entry of the store's ledger; the torn last line of a killed process is left out."""
    entries = []
    for text in _iter_files(ledger_directory(store)):
        for line in text.splitlines():
            try:
                entries.append(RiskEntry(**json.loads(line)))
            except (ValueError, TypeError):
                continue
    return entries


def _iter_files(directory: Path) -> Iterator[str]:
    if is_remote(directory):
        yield from (content.decode("utf-8", "replace") for content in read_objects(directory).values())
        return
    for path in sorted(directory.glob("*.jsonl")):
        yield path.read_text(encoding="utf-8")
