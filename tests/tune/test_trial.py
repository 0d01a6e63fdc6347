"""What a trial reports, and what is said where nothing that counts was ever reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from raystill.config.loaded import LoadedConfig
from raystill.config.tune import TuneSection
from raystill.errors import ConfigError, DivergenceError
from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths, TrialPaths
from raystill.tune.records import begin_trial
from raystill.tune.trial import TrialReporter

RATE = "train.distillation.learning_rate"
SweepConfig = Callable[..., LoadedConfig]


def reporter_in(tmp_path: Path, metric: str) -> TrialReporter:
    run = RunPaths(root=tmp_path, store=tmp_path / "store")
    sweep = SweepPaths.of(run, "sweep")
    begin_trial(sweep, 0, "id", {RATE: 1e-3})
    paths = TrialPaths.of_trial(run, sweep, 0, "distill")
    return TrialReporter(
        sweep, 0, TuneSection(metric=metric), 10, paths, hands_on=False, tell=lambda *_: None
    )


def test_a_metric_that_no_report_has_is_refused_with_those_there_are(tmp_path: Path) -> None:
    """I40."""
    reporter = reporter_in(tmp_path, "eval/accuracy")
    reporter.report(5, {"step": 5, "eval/ce": 1.0, "train/loss": 2.0})
    with pytest.raises(
        ConfigError, match="no report had eval/accuracy; there were: eval/ce, train/loss"
    ) as caught:
        reporter.require_reports()
    assert caught.value.exit_code == 2 and caught.value.problems[0].where == "tune.metric"
    assert caught.value.problems[0].fix


def test_a_metric_that_is_not_finite_ends_its_trial(tmp_path: Path) -> None:
    """I40: NaN is never compared with a number."""
    with pytest.raises(DivergenceError, match="eval/ce is nan at step 5") as caught:
        reporter_in(tmp_path, "eval/ce").report(5, {"step": 5, "eval/ce": math.nan})
    assert caught.value.exit_code == 6
