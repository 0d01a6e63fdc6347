"""Which row kills an engine: notes that outlive the process that dies, and what follows from them.

Every worker writes down which rows it has in flight. When its engine dies the process ends with it, Ray
starts the worker again, and the new process reads what was in flight. A row that was in flight at
`max_restarts` deaths (at least one) is a suspect. Suspects then run with nothing else in flight, in groups of
the square root of their number; when a group dies its rows are the suspects, in smaller groups, until one row
dies alone: it is convicted, and rejected. Restarts are what costs time, and this takes few: about log2 log2 n
for n suspects, where halving would take log2 n.

What no row explains is an error in the end: an engine that dies without finishing a row in between, suspects
that all finish when they run a few at a time, row after row convicted with nothing finished in between.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from raystill.errors import EnvironmentFault
from raystill.run.publish import make_directory, publish_file, write_json

_COMPACT_LINES = 20_000
# A machine that is taken away looks like a death, too: one is no proof against a row that was alone.
_LEAST_DEATHS = 2


@dataclass
class Blame:
    """What is known about an engine's deaths; JSON on the disk.

    `deaths` counts the deaths at which a row was in flight; rows that finish are forgotten. `group` is how
    many suspects run together, 0 while there are none. `convicted` rows killed an engine alone. `barren`
    counts deaths, and `barren_convictions` convictions, since a row last finished; `cleared` counts times
    that all suspects finished.
    """

    deaths: dict[str, int] = field(default_factory=dict)
    suspects: list[str] = field(default_factory=list)
    group: int = 0
    convicted: dict[str, int] = field(default_factory=dict)
    barren: int = 0
    barren_convictions: int = 0
    cleared: int = 0


class DeathNotes:
    """The notes of one worker, by a `name` that its successors share. Belongs to one thread."""

    def __init__(self, directory: Path, name: str, max_restarts: int) -> None:
        """Read what a predecessor left behind, and begin to take notes."""
        make_directory(directory)
        self._state_path = directory / f"{name}.json"
        self._rows_path = directory / f"{name}.rows"
        self._max_restarts = max_restarts
        self._in_flight: dict[str, None] = {}
        self._lines = 0
        self.blame = Blame()
        if self._state_path.exists():
            self.blame = Blame(**json.loads(self._state_path.read_text(encoding="utf-8")))
        self.is_successor = self._rows_path.exists()
        if self.is_successor:
            in_flight, finished = _read_rows(self._rows_path)
            note_death(self.blame, in_flight, finished, max_restarts)
            write_json(self._state_path, asdict(self.blame))
        self._stream = self._reopen()

    def require_hope(self, engine: str) -> None:
        """Raise EnvironmentFault where the deaths can't be laid on single rows."""
        blame, allowed = self.blame, max(1, self._max_restarts)
        if blame.barren > self._max_restarts + 1 or blame.barren_convictions > allowed:
            why = "without finishing a row in between"
        elif blame.cleared > allowed:
            why = "with many rows in flight, and never with few"
        else:
            return
        raise EnvironmentFault(
            f"the teacher's engine died again and again {why}; what it had committed is kept",
            where=f"engine {engine}",
            fix="look for out-of-memory kills, and into logs/ray of the run (what the workers printed); "
            "lower teacher.vllm.max_num_seqs or kv_cache_gib, then run again: only missing rows are made",
        )

    def started(self, key: str) -> None:
        """A row is in flight from now on."""
        self._in_flight[key] = None
        self._write(f"+{key}\n")

    def finished(self, key: str) -> None:
        """A row is in flight no longer, however it ended."""
        self._in_flight.pop(key, None)
        self._write(f"-{key}\n")

    def clear_suspects(self) -> None:
        """All suspects have finished: none of them kills an engine by itself."""
        blame = self.blame
        blame.deaths = {key: count for key, count in blame.deaths.items() if key not in blame.suspects}
        blame.suspects, blame.group = [], 0
        blame.cleared += 1
        write_json(self._state_path, asdict(blame))

    def close(self) -> None:
        """The worker ends in peace: whoever has its name next is no successor."""
        self._stream.close()
        self._rows_path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        # Unbuffered and not synced: it must outlive the process, not the machine.
        self._stream.write(line.encode("ascii"))
        self._lines += 1
        if self._lines > _COMPACT_LINES:
            self._stream.close()
            self._stream = self._reopen()

    def _reopen(self) -> BinaryIO:
        with publish_file(self._rows_path) as temporary:
            temporary.write_text("".join(f"+{key}\n" for key in self._in_flight), encoding="ascii")
        self._lines = 0
        return self._rows_path.open("ab", buffering=0)


def note_death(blame: Blame, in_flight: list[str], finished: set[str], max_restarts: int) -> None:
    """What a death adds to `blame`: who was in flight, who had finished since the worker started."""
    threshold = max(1, max_restarts)
    for key in finished:
        blame.deaths.pop(key, None)
    blame.suspects = [key for key in blame.suspects if key not in finished]
    if finished:
        blame.barren = blame.barren_convictions = 0
    was_narrowing = bool(in_flight) and blame.group > 0 and set(in_flight) <= set(blame.suspects)
    for key in in_flight:
        blame.deaths[key] = blame.deaths.get(key, 0) + 1
    if was_narrowing:
        for key in blame.suspects:
            blame.deaths[key] = max(blame.deaths[key], threshold) if key in in_flight else threshold - 1
    else:
        blame.barren += 1
    if len(in_flight) == 1 and blame.deaths[in_flight[0]] >= max(_LEAST_DEATHS, threshold):
        _convict(blame, in_flight[0])
    blame.suspects = [key for key, count in blame.deaths.items() if count >= threshold]
    blame.group = max(1, math.isqrt(len(blame.suspects))) if blame.suspects else 0


def _convict(blame: Blame, key: str) -> None:
    blame.convicted[key] = blame.deaths.pop(key)
    blame.barren = 0
    blame.barren_convictions += 1


def _read_rows(path: Path) -> tuple[list[str], set[str]]:
    """Keys in flight, oldest first, and keys that finished."""
    in_flight: dict[str, None] = {}
    finished: set[str] = set()
    for line in path.read_text(encoding="ascii").splitlines():
        sign, key = line[:1], line[1:]
        if sign == "+":
            in_flight[key] = None
            finished.discard(key)
        elif sign == "-":
            in_flight.pop(key, None)
            finished.add(key)
    return list(in_flight), finished
