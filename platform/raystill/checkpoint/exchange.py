"""How the workers of a cut model save together: each writes its own part, the first one publishes all.

They meet in a hidden directory beside the checkpoints, on the filesystem that they share, and say nothing to
one another but by files there: saving runs beside training, whose messages must not be mixed with others.

    .tmp-parts-<attempt>-<step>/
      model-00002-of-00002.safetensors ...   what the second worker holds
      part-1.json                            its sizes and checksums, written once the files are flushed
      failed-1                               in their place: it could not write them
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from raystill.checkpoint.parts import TensorGroups, write_part
from raystill.errors import EnvironmentFault
from raystill.run.failpoint import failpoint
from raystill.run.manifest import FileRecord, record_files
from raystill.run.publish import TEMPORARY_PREFIX, disk_faults, fsync_path, make_directory, write_json

_LOOK_SECONDS = 0.02
# A worker that is gone ends training, and with it this process; this is for whoever runs without Ray.
_PATIENCE_SECONDS = 1800.0


class PartExchange:
    """One worker's side of it. `attempt` is the same number for all workers of one start, and no other's."""

    def __init__(self, directory: Path, rank: int, size: int, attempt: int) -> None:
        self._directory = directory
        self._rank = rank
        self._size = size
        self._attempt = attempt
        self._taken: set[int] = set()
        self._abandoned = threading.Event()

    @property
    def size(self) -> int:
        """How many parts a checkpoint has."""
        return self._size

    def open(self, step: int) -> None:
        """The first worker says that there is room: the others may write."""
        make_directory(self._place(step))

    def leave(self, step: int, tensors: TensorGroups) -> Path:
        """Another worker writes its part, as soon as it may. Raises EnvironmentFault where it can't be."""
        place = self._place(step)
        self._wait(place.is_dir, step)
        try:
            with disk_faults(place):
                files = write_part(place, tensors, self._rank, self._size)
                for file in files:
                    fsync_path(file)
                records = record_files(place, files)
                failpoint("exchange:part_written")
                write_json(place / f"part-{self._rank}.json", {n: r.model_dump() for n, r in records.items()})
        except BaseException:
            with contextlib.suppress(OSError):
                (place / f"failed-{self._rank}").touch()
            raise
        return place

    def take(self, step: int, target: Path) -> dict[str, FileRecord]:
        """The first worker waits for the others' parts and moves them to `target`; returns their records.

        Raises EnvironmentFault where another worker could not write its own, or they were taken before.
        """
        place = self._place(step)
        if step in self._taken:
            raise EnvironmentFault(
                "the parts of the other workers went with the save that failed",
                where=str(self._directory),
                fix="run again: it resumes from the newest checkpoint",
            )
        found: dict[str, FileRecord] = {}
        for rank in range(1, self._size):
            self._wait(partial(self._has_answered, place, rank), step)
            if (place / f"failed-{rank}").exists():
                raise EnvironmentFault(
                    f"worker {rank} could not write its part of the checkpoint",
                    where=str(self._directory),
                    fix="look into the run's log for its own message, then run again: it resumes",
                )
            records = json.loads((place / f"part-{rank}.json").read_text(encoding="utf-8"))
            found |= {name: FileRecord.model_validate(record) for name, record in records.items()}
        self._taken.add(step)
        for name in found:
            os.replace(place / name, target / name)
        shutil.rmtree(place, ignore_errors=True)
        return found

    def abandon(self) -> None:
        """Wait for nobody any more: saves that still do are given up."""
        self._abandoned.set()

    def _has_answered(self, place: Path, rank: int) -> bool:
        return (place / f"part-{rank}.json").exists() or (place / f"failed-{rank}").exists()

    def _place(self, step: int) -> Path:
        return self._directory / f"{TEMPORARY_PREFIX}parts-{self._attempt:08x}-{step:08d}"

    def _wait(self, is_there: Callable[[], bool], step: int) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_there():
            if self._abandoned.wait(_LOOK_SECONDS) or time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"the workers could not save step {step} together: one of them has stopped",
                    where=str(self._directory),
                    fix="run again: it resumes from the newest checkpoint",
                )
