"""The checkpoints of a training run: room is made, a copy is written beside training, the rest is let go."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

from raystill.checkpoint.background import BackgroundWriter
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.relief import make_room
from raystill.checkpoint.retention import apply_retention
from raystill.checkpoint.store import TensorGroups, save_checkpoint, step_directory
from raystill.errors import EnvironmentFault
from raystill.run.events import EventLog
from raystill.train.assembly import TrainRun

_JSON_BYTES = 1 << 16


class CheckpointSaver:
    """Saves a run beside its steps. Every worker has one and calls it at the same steps; the first writes.

    While a copy is being taken the optimizer's next step waits for it; nothing else does.
    """

    def __init__(self, run: TrainRun) -> None:
        self._run = run
        self._directory = run.job.paths.checkpoints(run.job.stage)
        self.rules = RetentionRules.from_config(run.job.config, run.state.total_steps)
        self._writer = BackgroundWriter()
        resumed = step_directory(self._directory, run.state.step).is_dir()
        self._resume_point = {run.state.step} if resumed else set()
        self._hook = run.state.optimizer.register_step_pre_hook(lambda *_: self._writer.wait_copied())

    def save(self, metrics: dict[str, Any]) -> None:
        """Begin to save the state of now; `metrics` are what this step measured. Collective.

        Raises what the save before this one raised: EnvironmentFault where there was no room.
        """
        run, step = self._run, self._run.state.step
        gathered = run.state.gather(keep=run.group.is_first)
        if not run.group.is_first:
            return
        tensors = dict(gathered)
        if source := run.source.tensors():
            tensors["source"] = {name: tensor.clone() for name, tensor in source.items()}
        state = copy.deepcopy(run.state.describe(run.data_fingerprint))
        measured = dict(metrics)
        self._writer.submit(tensors, lambda copies: self._publish(step, copies, state, measured))

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
        """Wait until the last save is on disk. Raises what it raised."""
        self._writer.flush()

    def close(self) -> None:
        """Let the save in flight end, whatever comes of it."""
        self._hook.remove()
        self._writer.close()

    def _publish(
        self, step: int, tensors: TensorGroups, state: dict[str, Any], metrics: dict[str, Any]
    ) -> Any:
        started = time.monotonic()
        num_bytes = _JSON_BYTES + sum(
            tensor.numel() * tensor.element_size() for named in tensors.values() for tensor in named.values()
        )
        gone = make_room(self._directory, self.rules, num_bytes, in_use=self._resume_point)
        try:
            path = save_checkpoint(self._directory, step, tensors=tensors, state=state, metrics=metrics)
        except EnvironmentFault:  # a neighbour was quicker, or a quota that the filesystem doesn't tell
            only_newest = replace(self.rules, max_recent=1)
            gone += apply_retention(self._directory, only_newest, in_use=self._resume_point).deleted
            path = save_checkpoint(self._directory, step, tensors=tensors, state=state, metrics=metrics)
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
        return path
