"""What the driver writes down of trials that end without a word of their own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raystill.config.tune import TuneSection
from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths
from raystill.tune.concurrency import Concurrency
from raystill.tune.records import Report, append_report, best_trial, finish_trial, load_trials
from raystill.tune.schedule import TrialSource
from raystill.tune.watching import TrialWatch

RATE = "train.distillation.learning_rate"


def trial(name: str, error: Exception | None = None) -> Any:
    """A trial as Ray Tune shows it to a callback."""
    return SimpleNamespace(trial_id=name, get_error=lambda: error)


def test_a_crashed_trial_is_a_failed_one_and_the_others_keep_their_results(tmp_path: Path) -> None:
    """F35: its process died, and died again; what it had reported before was the best so far."""
    tune = TuneSection.model_validate({"search": "grid", "space": {RATE: {"grid": [1e-5, 1e-3]}}})
    run, sweep = RunPaths(root=tmp_path, store=tmp_path / "store"), SweepPaths(tmp_path / "sweep")
    source = TrialSource(tune, sweep, [])
    assert source.suggest("a") and source.suggest("b")
    watch = TrialWatch(sweep, run, "distill", tune, source, Concurrency(2, "trials"), None)
    for name in "ab":
        watch.on_trial_start(0, [], trial(name))
    append_report(sweep, 0, Report(5, 50.0, 0.1))
    watch.on_trial_error(1, [], trial("a", RuntimeError("Traceback ...\nActorDiedError: the worker died")))
    append_report(sweep, 1, Report(10, 100.0, 0.4))
    finish_trial(sweep, 1, "complete", seconds=3.0)
    watch.on_trial_complete(2, [], trial("b"))
    watch.close()
    crashed, whole = load_trials(sweep)
    assert (crashed.outcome, crashed.problem) == ("failed", "ActorDiedError: the worker died")
    assert (whole.outcome, whole.seconds) == ("complete", 3.0)
    best = best_trial([crashed, whole], tune.mode)
    assert best is not None and best.number == 1
    events = [json.loads(line) for line in sweep.log.read_text(encoding="utf-8").splitlines()]
    ended = [(event["trial"], event["outcome"]) for event in events if event["event"] == "trial_finished"]
    assert ended == [(0, "failed"), (1, "complete")]
