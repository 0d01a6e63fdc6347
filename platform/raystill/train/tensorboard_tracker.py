"""TensorBoard event files under `experiment.path`, one directory per experiment and run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raystill.train.trackers import TrackedRun


class TensorboardTracker:
    """Writes with tensorboardX, which Ray Tune brings along. A resumed run hides what it writes again."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._run: TrackedRun | None = None

    def start(self, run: TrackedRun) -> None:
        """Open the event file, and note parameters, data and tags as text."""
        from tensorboardX import SummaryWriter

        experiment = run.experiment
        directory = Path(experiment.path).expanduser() / experiment.name / experiment.run_name
        self._writer = SummaryWriter(logdir=str(directory), purge_step=run.first_step + 1)
        self._run = run
        if run.first_step == 0:
            texts = {
                "parameters": dict(run.parameters),
                experiment.dataset_artifact_path: {**run.data, "tags": experiment.dataset_tags},
            }
            for name, value in texts.items():
                self._writer.add_text(name, f"```\n{json.dumps(value, indent=2, default=str)}\n```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, model: Path | None) -> None:
        """Note where the model is, and close the file."""
        if model is not None and self._run is not None:
            experiment = self._run.experiment
            self._writer.add_text(
                experiment.model_artifact_path,
                f"{experiment.registered_model_name or experiment.run_name}: {model}",
                0,
            )
        self._writer.close()
