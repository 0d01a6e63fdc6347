"""Paths of a sweep, below the directory of the run whose answers it trains from.

<run>/tune/<name>/
  sweep.json          what the sweep was begun with
  trials/0007/        trial.json, reports.jsonl, result.json, and the stage's own files (checkpoints, ...)
  examples/           encoded rows, shared by all trials
  ray/                what Ray Tune notes while the sweep runs
  best/               config.yaml, trial.json, checkpoint/                     (published at the end)
  trials.parquet, trials.csv, report.html, report.json
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from raystill.run.paths import RunPaths, StageName


@dataclass(frozen=True)
class SweepPaths:
    """Every path of one sweep. Pure."""

    root: Path

    @classmethod
    def of(cls, run: RunPaths, name: str) -> SweepPaths:
        """The sweep `name` of a run."""
        return cls(run.root / "tune" / name)

    @property
    def record(self) -> Path:
        return self.root / "sweep.json"

    @property
    def lock(self) -> Path:
        return self.root / "sweep.lock"

    @property
    def log(self) -> Path:
        return self.root / "sweep.jsonl"

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    def trial(self, number: int) -> Path:
        """Directory of one trial."""
        return self.trials / f"{number:04d}"

    @property
    def examples(self) -> Path:
        return self.root / "examples"

    @property
    def ray(self) -> Path:
        return self.root / "ray"

    @property
    def best(self) -> Path:
        return self.root / "best"

    @property
    def table(self) -> Path:
        return self.root / "trials.parquet"

    @property
    def csv(self) -> Path:
        return self.root / "trials.csv"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def page_facts(self) -> Path:
        """What the page is made from, for the report of the run."""
        return self.root / "report.json"


@dataclass(frozen=True, kw_only=True)
class TrialPaths(RunPaths):
    """A run's paths as one trial sees them: its own stage directory, everything else the run's."""

    trial: Path
    tuned: StageName
    examples: Path

    @classmethod
    def of_trial(cls, run: RunPaths, sweep: SweepPaths, number: int, stage: StageName) -> TrialPaths:
        """The paths of trial `number`, which trains `stage`."""
        shared = {field.name: getattr(run, field.name) for field in fields(RunPaths)}
        shared["copies"] = None  # most trials' checkpoints are not worth it
        return cls(**shared, trial=sweep.trial(number), tuned=stage, examples=sweep.examples)

    def stage_dir(self, stage: StageName) -> Path:
        """The trial's directory for the stage that it trains, the run's for every other."""
        return self.trial if stage == self.tuned else super().stage_dir(stage)

    def training_examples(self, stage: StageName) -> Path:
        """Shared by all trials: rows that are encoded alike are encoded once."""
        return self.examples if stage == self.tuned else super().training_examples(stage)
