"""The product's training loop in this process, without Ray: an arm costs its training only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from raystill.config.schema import Config
from raystill.run.paths import RunPaths, StageName
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.settings import TrainStageName
from raystill.train.worker import train_worker


@dataclass(frozen=True, kw_only=True)
class ArmPaths(RunPaths):
    """A world's paths as one arm sees them: `distill` is its own directory, and `sft` the stage directory
    whose model it starts from."""

    own: Path
    starts: Path

    @classmethod
    def of_arm(cls, world: RunPaths, own: Path, starts: Path) -> ArmPaths:
        """The paths of an arm in the directory `own`."""
        shared = {field.name: getattr(world, field.name) for field in fields(RunPaths)}
        return cls(**shared, own=own, starts=starts)

    def stage_dir(self, stage: StageName) -> Path:
        """The arm's directory, the one it starts from, or the world's."""
        return {"distill": self.own, "sft": self.starts}.get(stage) or super().stage_dir(stage)


class _Silent:
    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """Nobody listens: metrics.jsonl has everything."""


def train_in_process(config: Config, paths: RunPaths, stage: TrainStageName, threads: int) -> dict[str, Any]:
    """Train to the last step, from the newest checkpoint where there is one; returns the loop's summary."""
    return train_worker(TrainJob(config, paths, stage, "cpu", threads), WorkerGroup(), _Silent())
