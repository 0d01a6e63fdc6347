"""The checkpoints of a training run: room is made, a copy is written beside training, the rest is let go."""

from __future__ import annotations

import copy
import secrets
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from raystill.checkpoint.background import BackgroundWriter
from raystill.checkpoint.copies import copies_of
from raystill.checkpoint.exchange import PartExchange
from raystill.checkpoint.parts import TensorGroups
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.relief import make_room
from raystill.checkpoint.retention import apply_retention
from raystill.checkpoint.store import save_checkpoint, step_directory
from raystill.errors import EnvironmentFault, RaystillError, RemoteError
from raystill.run.events import EventLog
from raystill.train.assembly import TrainRun
from raystill.train.sharding import is_sharded

_JSON_BYTES = 1 << 16
# How long the other workers' parts of a save are waited for, once training is at its end.
_GRACE_SECONDS = 60.0


class CheckpointSaver:
    """Saves a run beside its steps. Every worker has one and calls it at the same steps; the first publishes.

    Where the model is cut, every worker writes its own part of it, else the first writes all. While a copy is
    being taken the optimizer's next step waits for it; nothing else does.
    """

    def __init__(self, run: TrainRun) -> None:
        """Collective."""
        self._run = run
        self._directory = run.job.paths.checkpoints(run.job.stage)
        self.rules = RetentionRules.from_config(run.job.config, run.state.total_steps)
        self._writer = BackgroundWriter()
        self._exchange = _build_exchange(run, self._directory)
        self._copies = copies_of(run.job.paths, run.job.stage) if run.group.is_first else None
        self._is_copied = self._copies is None
        resumed = step_directory(self._directory, run.state.step).is_dir()
        self._resume_point = {run.state.step} if resumed else set()
        self._hook = run.state.optimizer.register_step_pre_hook(lambda *_: self._writer.wait_copied())

    def save(self, metrics: dict[str, Any]) -> None:
        """Begin to save the state of now; `metrics` are what this step measured. Every worker calls it.

        Raises what the save before this one raised: EnvironmentFault where there was no room.
        """
        run, step, exchange = self._run, self._run.state.step, self._exchange
        if exchange is None and not run.group.is_first:
            return
        tensors = run.state.tensors(is_first=run.group.is_first)
        source = run.source.tensors() if run.group.is_first else {}
        if source or exchange is not None:  # all parts have the same groups
            tensors["source"] = {name: tensor.clone() for name, tensor in source.items()}
        if exchange is not None and not run.group.is_first:
            self._writer.submit(tensors, lambda copies: exchange.leave(step, copies))
            return
        state = copy.deepcopy(run.state.describe(run.data_fingerprint))
        measured, num_bytes = dict(metrics), _JSON_BYTES + run.state.num_bytes()
        self._writer.submit(tensors, lambda copies: self._publish(step, copies, num_bytes, state, measured))

    def relieve(self) -> None:
        """Let go of what little free disk lets go, unless a save is in flight, which does it itself.

        Also what crashes left. The first worker alone calls it.
        """
        if not self._writer.is_busy and self._directory.is_dir():
            apply_retention(self._directory, self.rules, in_use=self._resume_point)

    def check(self) -> None:
        """Raise what the last save raised, if it has ended. Never waits."""
        self._writer.raise_if_failed()

    def finish(self) -> None:
        """Wait until the last save is on disk, and copied where copies are kept. Collective.

        Raises what it raised: EnvironmentFault, or RemoteError where the storage refuses the copy.
        """
        fault: RaystillError | None = None
        try:
            self._writer.flush()
            if self._copies is not None and not self._is_copied:
                self._copies.follow(self.rules)
                self._is_copied = True
        except RaystillError as error:
            fault = error
        failed = self._run.group.most(int(fault is not None), self._run.state.student.device)
        if fault is not None:
            raise fault
        if failed:
            raise EnvironmentFault(
                "another worker could not save the last step",
                where=str(self._directory),
                fix="look into the run's log for its own message, then run again: it resumes",
            )

    def close(self) -> None:
        """Let the save in flight end, whatever comes of it."""
        self._hook.remove()
        timer = threading.Timer(_GRACE_SECONDS, self._exchange.abandon) if self._exchange else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        self._writer.close()
        if timer is not None:
            timer.cancel()

    def _publish(
        self, step: int, tensors: TensorGroups, num_bytes: int, state: dict[str, Any], metrics: dict[str, Any]
    ) -> Path:
        started = time.monotonic()
        gone = make_room(self._directory, self.rules, num_bytes, in_use=self._resume_point)
        if self._exchange is not None:
            self._exchange.open(step)
        try:
            path = self._write(step, tensors, state, metrics)
        except EnvironmentFault:  # a neighbour was quicker, or a quota that the filesystem doesn't tell
            only_newest = replace(self.rules, max_recent=1)
            gone += apply_retention(
                self._directory, only_newest, in_use=self._resume_point, leftovers=self._exchange is None
            ).deleted
            path = self._write(step, tensors, state, metrics)
        self._resume_point = {step}
        result = apply_retention(self._directory, self.rules, current=step, in_use=self._resume_point)
        with EventLog(self._run.job.paths.run_log, self._run.job.stage) as events:
            events.emit(
                "checkpoint_saved",
                step=step,
                num_bytes=num_bytes,
                seconds=round(time.monotonic() - started, 3),
                deleted=[*gone, *result.deleted],
                failed=[[str(place), why] for place, why in result.failed],
                recent_allowed=result.plan.recent_allowed,
            )
            self._copy(events)
        return path

    def _write(
        self, step: int, tensors: TensorGroups, state: dict[str, Any], metrics: dict[str, Any]
    ) -> Path:
        exchange = self._exchange
        if exchange is None:
            return save_checkpoint(self._directory, step, tensors=tensors, state=state, metrics=metrics)
        return save_checkpoint(
            self._directory,
            step,
            tensors=tensors,
            state=state,
            metrics=metrics,
            num_parts=exchange.size,
            take_parts=lambda target: exchange.take(step, target),
        )

    def _copy(self, events: EventLog) -> None:
        """Bring the copies up to date. Where they can't be, training goes on; the next save tries again."""
        if self._copies is None:
            return
        started = time.monotonic()
        self._is_copied = False
        try:
            copied = self._copies.follow(self.rules)
        except RemoteError as error:
            events.emit("warning", message=f"no copy of the checkpoints for now: {error.what}")
            return
        self._is_copied = True
        events.emit("checkpoints_copied", steps=list(copied), seconds=round(time.monotonic() - started, 3))


def _build_exchange(run: TrainRun, directory: Path) -> PartExchange | None:
    """Where the workers meet to save, if each holds a part of the model. Collective."""
    if not is_sharded(run.state.student.network):
        return None
    number = secrets.randbelow(1 << 31) if run.group.is_first else 0
    attempt = run.group.most(number, run.state.student.device)
    return PartExchange(directory, run.group.rank, run.group.size, attempt)
