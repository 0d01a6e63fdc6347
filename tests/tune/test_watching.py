"""What the driver writes down of trials that end without a word of their own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raystill.config.tune import TuneSection
from raystill.errors import DiskFault
from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths
from raystill.tune.concurrency import Concurrency
from raystill.tune.records import Report, append_report, best_trial, finish_trial, load_trials
from raystill.tune.schedule import TrialSource
from raystill.tune.watching import TrialWatch

RATE = "train.distillation.learning_rate"


def trial(name: str, error: Exception | None = None) -> Any:
    """A trial as Ray Tune shows it to a callback: an error's text, and Ray's own with ours in it."""
    pickled = None if error is None else SimpleNamespace(cause=error)
    return SimpleNamespace(
        trial_id=name,
        get_error=lambda: None if error is None else str(error),
        get_pickled_error=lambda: pickled,
    )


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


def test_a_full_disk_is_no_trials_fault_and_ends_the_sweep(tmp_path: Path) -> None:
    """F14: what was running goes on when the sweep is started again; what was done stays done."""
    tune = TuneSection.model_validate({"search": "grid", "space": {RATE: {"grid": [1e-5, 1e-4, 1e-3, 1e-2]}}})
    run, sweep = RunPaths(root=tmp_path, store=tmp_path / "store"), SweepPaths(tmp_path / "sweep")
    source = TrialSource(tune, sweep, [])
    watch = TrialWatch(sweep, run, "distill", tune, source, Concurrency(3, "trials"), None)
    for number, name in enumerate("abc"):
        assert source.suggest(name)
        watch.on_trial_start(0, [], trial(name))
        append_report(sweep, number, Report(5, 50.0, 0.1))
    finish_trial(sweep, 0, "complete", seconds=3.0)
    watch.on_trial_complete(1, [], trial("a"))
    watch.on_trial_error(2, [], trial("b", DiskFault("stopped after step 5, which is saved: 0.1 GiB")))
    watch.on_trial_error(3, [], trial("c", RuntimeError("No space left on device")))
    watch.close()
    assert watch.fault is not None and "step 5" in watch.fault.what
    assert source.suggest("d") == TrialSource.FINISHED
    records = load_trials(sweep)
    assert [record.outcome for record in records] == ["complete", "unfinished", "unfinished"]
    again = TrialSource(tune, sweep, records)
    assert [again.suggest(name)["slot"]["number"] for name in "efg"] == [1, 2, 3]


def test_while_trials_write_those_that_are_over_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The byte budget isn't only looked at when a trial ends; what can't be met is said once."""
    monkeypatch.setattr("raystill.tune.watching._TIDY_SECONDS", 0.0)
    space = {RATE: {"grid": [1e-5, 1e-4, 1e-3]}}
    tune = TuneSection.model_validate({"search": "grid", "space": space, "max_gb": 0.001})
    run, sweep = RunPaths(root=tmp_path, store=tmp_path / "store"), SweepPaths(tmp_path / "sweep")
    source = TrialSource(tune, sweep, [])
    watch = TrialWatch(sweep, run, "distill", tune, source, Concurrency(3, "trials"), None)
    weights = []
    for number, name in enumerate("abc"):
        assert source.suggest(name)
        watch.on_trial_start(0, [], trial(name))
        append_report(sweep, number, Report(5, 50.0, (0.4, 0.1, 0.5)[number]))
        weights.append(sweep.trial(number) / "checkpoints" / "weights")
        weights[-1].parent.mkdir(parents=True)
        weights[-1].write_bytes(b"x" * 300_000)
    for number, name in enumerate("ab"):
        finish_trial(sweep, number, "complete", seconds=1.0)
        watch.on_trial_complete(1, [], trial(name))
    assert all(file.exists() for file in weights)
    weights[2].write_bytes(b"x" * 500_000)
    watch.on_trial_result(2, [], trial("c"), {})
    assert [file.exists() for file in weights] == [False, True, True]
    weights[2].write_bytes(b"x" * 900_000)
    for iteration in (3, 4):
        watch.on_trial_result(iteration, [], trial("c"), {})
    watch.close()
    assert [file.exists() for file in weights] == [False, True, True]
    events = [json.loads(line) for line in sweep.log.read_text(encoding="utf-8").splitlines()]
    assert [event["trials"] for event in events if event["event"] == "checkpoints_deleted"] == [[0]]
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 1 and "more than tune.max_gb (0.001)" in warnings[0]
