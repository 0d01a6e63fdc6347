"""Drawing values, and what a scheduler and a searcher are told of earlier processes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.tune import Distribution, TuneSection
from raystill.errors import EnvironmentFault
from raystill.run.sweep_paths import SweepPaths
from raystill.tune.concurrency import choose_concurrency, worker_resources
from raystill.tune.records import (
    Report,
    TrialRecord,
    append_report,
    begin_trial,
    best_trial,
    finish_trial,
    load_trials,
)
from raystill.tune.space import clamp, draw, plan_params


def section(**values: Any) -> TuneSection:
    return TuneSection.model_validate(values)


@given(st.floats(1e-6, 1.0), st.floats(1.001, 1e4), st.integers(0, 1000))
def test_draws_stay_in_their_range(low: float, factor: float, seed: int) -> None:
    high = low * factor
    for kind in ("uniform", "loguniform"):
        value = draw(Distribution.model_validate({kind: [low, high]}), random.Random(seed))
        assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
    whole = Distribution(randint=[2, 5])
    assert draw(whole, random.Random(seed)) in (2, 3, 4, 5)
    assert clamp(whole, 9.7) == 5 and clamp(Distribution(uniform=[0, 1]), -3) == 0.0


def test_the_same_section_plans_the_same_trials_and_grids_are_crossed() -> None:
    space = {"a": {"grid": [1, 2]}, "b": {"choice": ["x", ["y"]]}, "c": {"uniform": [0, 1]}}
    tune = section(space=space, num_samples=3)
    planned = plan_params(tune)
    assert planned == plan_params(tune) and len(planned) == 6
    assert [params["a"] for params in planned] == [1, 1, 1, 2, 2, 2]
    assert len({params["c"] for params in planned}) == 6
    assert planned != plan_params(section(space=space, num_samples=3, seed=1))
    both = section(space={"a": {"grid": [1, 2]}, "b": {"choice": [3, 4, 5]}}, search="grid")
    assert len(plan_params(both)) == 6


def test_a_key_added_to_the_space_changes_no_other_draw() -> None:
    space = {"a": {"uniform": [0, 1]}}
    alone = plan_params(section(space=space))
    more = plan_params(section(space={**space, "b": {"uniform": [0, 1]}}))
    assert [params["a"] for params in alone] == [params["a"] for params in more]


def test_records_survive_torn_lines_and_repeated_steps(tmp_path: Path) -> None:
    sweep = SweepPaths(tmp_path)
    for number in (0, 1, 2):
        begin_trial(sweep, number, f"id{number}", {"a": number})
    for step, value in ((1, 5.0), (2, 4.0), (1, 5.0), (2, 3.0)):
        append_report(sweep, 0, Report(step, 10.0 * step, value))
    with (sweep.trial(0) / "reports.jsonl").open("a") as stream:
        stream.write('{"step": 3, "per')
    append_report(sweep, 1, Report(1, 10.0, 1.0))
    finish_trial(sweep, 0, "complete", train_seconds=1.0)
    finish_trial(sweep, 0, "stopped")
    finish_trial(sweep, 1, "stopped")
    records = load_trials(sweep)
    assert [report.value for report in records[0].reports] == [5.0, 3.0]
    assert [record.outcome for record in records] == ["complete", "stopped", "unfinished"]
    best = best_trial(records, "min")
    assert best is not None and best.number == 0  # trial 1 is lower, and was not trained to its end


def test_concurrency_comes_from_resources() -> None:
    tune = section(resources={"cpus": 2, "gpus": 0.5})
    wanted = worker_resources(tune, "cuda")
    assert choose_concurrency(tune, wanted, {"CPU": 9, "GPU": 2}, 100).trials == 4
    assert choose_concurrency(tune, wanted, {"CPU": 9, "GPU": 1}, 100).limit == "GPU"
    assert choose_concurrency(section(max_concurrent=1), {"CPU": 1}, {"CPU": 8}, 9).trials == 1
    assert choose_concurrency(section(), {"CPU": 1}, {"CPU": 8}, 3).limit == "trials"
    with pytest.raises(EnvironmentFault, match=r"a trial takes 0\.5 GPU, and there are 0"):
        choose_concurrency(tune, wanted, {"CPU": 9}, 1)


def record(number: int, *values: float) -> TrialRecord:
    reports = tuple(Report(step, 10.0 * step, value) for step, value in enumerate(values, 1))
    return TrialRecord(number, {"x": 0.1 * number, "y": "b"}, "complete", reports)


def test_asha_remembers_what_an_earlier_process_saw(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from raystill.tune.schedule import SCORE, TIME, TrialSource, build_scheduler

    tune = section(asha={"grace": 0.1, "reduction_factor": 2}, space={"x": {"uniform": [0, 1]}})
    bad: Any = SimpleNamespace(trial_id="new")
    results = {}
    for name, earlier in (("fresh", []), ("resumed", [record(n, 1.0, 1.0) for n in range(4)])):
        source = TrialSource(tune, SweepPaths(tmp_path), earlier)
        scheduler = build_scheduler(tune, earlier, source)
        scheduler.on_trial_add(None, bad)
        results[name] = scheduler.on_trial_result(None, bad, {TIME: 10.0, SCORE: 9.0})
    assert results == {"fresh": "CONTINUE", "resumed": "STOP"}


def test_a_searcher_hands_out_unfinished_trials_first(tmp_path: Path) -> None:
    from raystill.tune.schedule import TrialSource

    tune = section(space={"x": {"uniform": [0, 1]}}, num_samples=3)
    planned = plan_params(tune)
    earlier = [record(0, 1.0), TrialRecord(1, planned[1])]
    source = TrialSource(tune, SweepPaths(tmp_path), earlier)
    assert source.left == 2
    handed = [source.suggest(name)["slot"] for name in ("a", "b")]
    assert handed == [{"number": number, "params": planned[number]} for number in (1, 2)]
    assert source.suggest("c") == source.FINISHED and source.numbers == {"a": 1, "b": 2}


def test_optuna_learns_from_earlier_trials(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from raystill.tune.schedule import SCORE, TrialSource

    space = {"x": {"uniform": [0, 1]}, "y": {"choice": ["a", "b", ["c"]]}}
    tune = section(space=space, search="optuna", num_samples=4)
    source = TrialSource(tune, SweepPaths(tmp_path), [record(0, 1.0), record(1, 0.5)])
    assert source.left == 2
    first = source.suggest("t2")["slot"]["params"]
    assert 0 <= first["x"] <= 1 and first["y"] in ("a", "b", ["c"])
    source.on_trial_complete("t2", {SCORE: 0.3})
    source.suggest("t3")
    assert source.suggest("t4") == source.FINISHED


def test_a_trial_that_was_killed_is_never_the_best_while_one_is_complete(tmp_path: Path) -> None:
    """F35: what it had reported so far was better than any end."""
    sweep = SweepPaths(tmp_path)
    for number, (outcome, value) in enumerate(
        [("unfinished", 0.1), ("complete", 0.5), ("failed", 0.01), ("complete", float("nan"))]
    ):
        begin_trial(sweep, number, f"t{number}", {})
        append_report(sweep, number, Report(5, 50.0, value))
        if outcome != "unfinished":  # a killed driver leaves a trial without a result
            finish_trial(sweep, number, outcome)  # type: ignore[arg-type]
    best = best_trial(load_trials(sweep), "min")
    assert best is not None and best.number == 1
