"""Ending a run early without losing a step: all workers agree, save the state of now, and stop.

There are three reasons: little disk is left where the run lies, the driver asks (its process was told to
end), or a machine is about to be taken away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from raystill.errors import DiskFault, PreemptionFault, StopFault
from raystill.run.disk import free_bytes
from raystill.train.assembly import TrainRun
from raystill.train.saving import CheckpointSaver

_GIB = 2**30
_GO_ON, _LOOK, _DISK, _ASKED, _PREEMPTED = range(5)
_FAULTS = {_DISK: DiskFault, _ASKED: StopFault, _PREEMPTED: PreemptionFault}
_PREEMPTION_SECONDS = 2.0


class StopWatch:
    """Looks for a reason to stop between steps. Every worker has one and asks it after the same steps.

    `is_preempted` is called by all workers together, every few seconds.
    """

    def __init__(
        self, run: TrainRun, saver: CheckpointSaver, is_preempted: Callable[[], bool] | None = None
    ) -> None:
        self._run = run
        self._saver = saver
        self._is_preempted = is_preempted
        self._request = run.job.paths.stop_request(run.job.stage)
        self._checkpoints = run.job.paths.checkpoints(run.job.stage)
        self._next_disk = self._next_preemption = 0.0

    def check(self, is_saved: bool, metrics: dict[str, Any]) -> None:
        """Save, unless this step `is_saved`, where there is a reason to stop, and raise it.

        That is a DiskFault, a PreemptionFault where a machine is about to be taken away, or a StopFault.
        """
        run = self._run
        found = run.group.most(self._look() if run.group.is_first else _GO_ON, run.state.student.device)
        if found == _LOOK:
            preempted = self._is_preempted is not None and self._is_preempted()
            found = _PREEMPTED if preempted else _GO_ON
        if found == _GO_ON:
            return
        if not is_saved:
            self._saver.save(metrics)
        self._saver.finish()
        if found == _DISK and run.group.is_first:
            self._saver.relieve()  # the save in flight may have seen the disk before it was low
        raise _FAULTS[found](
            f"stopped after step {run.state.step}, which is saved: {self._why(found)}",
            where=str(self._checkpoints),
            fix="run again: it goes on from there" if found != _DISK else "free some space, then run again",
        )

    def _look(self) -> int:
        """What the first worker sees: the request, the disk, or that it is time to ask about preemption."""
        if self._request.exists():
            return _ASKED
        now, disk = time.monotonic(), self._run.job.config.disk
        if now >= self._next_disk:
            self._next_disk = now + disk.interval_s
            free_gb = free_bytes(self._checkpoints) / _GIB
            if free_gb < self._saver.rules.min_free_gb:
                self._saver.relieve()
                free_gb = free_bytes(self._checkpoints) / _GIB
            if free_gb < disk.hard_free_gb:
                return _DISK
        if self._is_preempted is not None and now >= self._next_preemption:
            self._next_preemption = now + _PREEMPTION_SECONDS
            return _LOOK
        return _GO_ON

    def _why(self, found: int) -> str:
        if found == _ASKED:
            return "it was asked to"
        if found == _PREEMPTED:
            return "a machine is about to be taken away"
        free = free_bytes(self._checkpoints) / _GIB
        limit = self._run.job.config.disk.hard_free_gb
        return f"{free:.2f} GiB of disk are free, less than disk.hard_free_gb ({limit:g})"
