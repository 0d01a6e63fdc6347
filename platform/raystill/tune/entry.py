"""What Ray Tune calls in a trial's process. The driver imports this too, and torch must not come with it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.errors import DiskFault, RaystillError, StopFault
from raystill.run.sweep_paths import SweepPaths
from raystill.train.settings import TrainStageName
from raystill.tune.records import find_trial, finish_trial, forget_stop_request

_LONGEST_REASON = 300
# A trial that is ended waits for the save in flight. Ray Tune gives it 2 s before its process goes on to the
# next trial, and where that isn't enough it is the next trial that fails.
_ENDING = ("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")


@dataclass(frozen=True)
class SweepJob:
    """What every trial of a sweep needs to know; plain data, so it crosses process boundaries.

    `config` is the whole configuration as JSON; `resources` are those of one worker of a trial; `hands_on`
    says that trials go on from one another's checkpoints.
    """

    config: str
    root: str
    store: str
    sweep: str
    stage: TrainStageName
    device: str
    resources: dict[str, float]
    hands_on: bool


def run_trial(sampled: dict[str, Any], job: SweepJob) -> None:
    """Train one trial to its end. What is wrong with it becomes its result, and harms no other trial.

    Raises DiskFault, which is no trial's own and ends the sweep (`watching`), and StopFault.
    """
    from ray import tune

    from raystill.tune.trial import train_trial

    os.environ.setdefault(*_ENDING)
    sweep = SweepPaths(Path(job.sweep))
    number = find_trial(sweep, tune.get_context().get_trial_id())
    started = time.monotonic()
    try:
        train_seconds = train_trial(job, sweep, number, sampled["slot"]["params"])
    except (DiskFault, StopFault):
        forget_stop_request(sweep, number)  # it has saved
        raise
    except RaystillError as error:
        problem = error.what.splitlines()[0][:_LONGEST_REASON]
        finish_trial(sweep, number, "failed", seconds=time.monotonic() - started, problem=problem)
        return
    finish_trial(sweep, number, "complete", seconds=time.monotonic() - started, train_seconds=train_seconds)
