"""What Ray Train knows of the checkpoints: a pointer to each, in a directory that lasts one attempt.

Ray offers four ways to keep milestones beside the most recent checkpoints: copies made by a callback, a
static score, a callback that changes `num_to_keep` as training goes on, and pointers. Only with pointers can
a checkpoint be deleted behind Ray's back (Ray raises when it rotates a directory that is gone, and its next
start refuses the run), be pinned later, or give way to pressure; and only with a fresh directory for every
attempt does a torn snapshot of Ray's stop nothing. So the weights are `checkpoint.retention`'s alone. Ray's
CheckpointConfig rotates the pointers, by a score that puts milestones first: when a run has ended, the
pointers of its `Result` that resolve are what exists: milestones, the most recent, the best and the pinned.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raystill.checkpoint.policy import MILESTONE_PERCENTS, milestone_steps
from raystill.checkpoint.store import list_checkpoints, step_directory, step_of
from raystill.config.schema import Config
from raystill.run.publish import make_directory
from raystill.train.group import WorkerGroup

if TYPE_CHECKING:
    from ray.train import CheckpointConfig, Result

POINTER_NAME = "checkpoint.json"
SCORE = "retention_score"
_ATTEMPT_PREFIX = "attempt-"
_MILESTONE = 10**12
# Pins are set while a run goes on, and Ray wants to know how many pointers it keeps when it begins.
_MOST_PINS = 16


def pointer_config(config: Config) -> CheckpointConfig:
    """How Ray rotates pointers: all milestones, the most recent others, and room for best and pinned ones."""
    from ray.train import CheckpointConfig

    cleanup = config.training.checkpoint_cleanup
    return CheckpointConfig(
        num_to_keep=cleanup.max_checkpoints + len(MILESTONE_PERCENTS) + cleanup.keep_best + _MOST_PINS,
        checkpoint_score_attribute=SCORE,
        checkpoint_score_order="max",
    )


@contextmanager
def fresh_attempt(directory: Path) -> Iterator[str]:
    """A name below `directory` that no attempt has had; those of earlier attempts are removed.

    What this one leaves stays for `Result.from_path`, unless it fails.
    """
    shutil.rmtree(directory, ignore_errors=True)
    make_directory(directory)
    try:
        yield f"{_ATTEMPT_PREFIX}{secrets.token_hex(6)}"
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def listed_checkpoints(result: Result) -> list[Path]:
    """The checkpoints that a result of Ray's points to and that are there, by step."""
    found = set()
    for pointer, _ in result.best_checkpoints or []:
        place = Path(json.loads((Path(pointer.path) / POINTER_NAME).read_text(encoding="utf-8"))["path"])
        if place.is_dir():
            found.add(place)
    return sorted(found)


class PointerReporter:
    """Tells Ray Train of every save. Every worker has one; the first one's metrics and pointers count."""

    def __init__(self, directory: Path, group: WorkerGroup, device: torch.device, num_recent: int) -> None:
        """`num_recent` is how many besides the milestones Ray is sure to keep by their step."""
        self._directory = directory
        self._num_recent = num_recent
        self._group = group
        self._device = device
        self._told: set[int] = set()
        # A group of workers that Ray started again tells some steps once more: no name may come twice.
        self._group_name = secrets.token_hex(4)

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """Report a step that is being saved.

        At the last one, also what earlier attempts have saved, and what Ray may have let go: the best and the
        pinned of the steps that are no longer recent.
        """
        total = int(metrics["total_steps"])
        if step == total:
            older = self._find_untold(step, total) if self._group.is_first else []
            count = self._group.most(len(older), self._device)
            for position in range(count):
                self._tell(older[position] if self._group.is_first else 0, {}, total, stays=True)
        self._tell(step, metrics, total)

    def _find_untold(self, step: int, total_steps: int) -> list[int]:
        found = [one for path in list_checkpoints(self._directory) if (one := step_of(path)) is not None]
        milestones = milestone_steps(total_steps)
        recent = sorted(one for one in self._told if one not in milestones)[-self._num_recent :]
        known = self._told.intersection([*milestones, *recent])
        return [one for one in found if one < step and one not in known]

    def _tell(self, step: int, metrics: dict[str, Any], total_steps: int, *, stays: bool = False) -> None:
        import ray.train

        self._told.add(step)
        score = step + (_MILESTONE if stays or step in milestone_steps(total_steps) else 0)
        plain = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        values = {**plain, "step": step, SCORE: score}
        if not self._group.is_first:
            ray.train.report(values)
            return
        pointer = {"step": step, "path": str(step_directory(self._directory, step).absolute())}
        with tempfile.TemporaryDirectory(prefix="raystill-pointer-") as folder:
            (Path(folder) / POINTER_NAME).write_text(json.dumps(pointer), encoding="utf-8")
            ray.train.report(
                values,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"pointer-{step:08d}-{self._group_name}{'-stays' if stays else ''}",
            )
