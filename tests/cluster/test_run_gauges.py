"""Metrics of a run: what events become, and a dashboard that asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from raystill.cluster import run_gauges
from raystill.cluster.run_gauges import SWEEP_METRICS, TEACHER_METRICS, TRAINING_METRICS, RunGauges
from raystill.train.stage import progress_fields

ROOT = Path(__file__).resolve().parents[2]
DISK_METRICS = {"raystill_disk_free_bytes", "raystill_disk_total_bytes"}


@pytest.fixture
def set_values(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """What was set, by metric and stage."""
    values: dict[tuple[str, str], float] = {}

    def note(self: RunGauges, name: str, description: str, value: float, stage: str) -> None:
        assert description
        values[name, stage] = value

    monkeypatch.setattr(run_gauges.RunGauges, "set", note)
    return values


def test_progress_becomes_numbers_of_its_stage(set_values: dict[tuple[str, str], float]) -> None:
    gauges = RunGauges("demo")
    gauges.take({"event": "progress", "stage": "generate", "done": 5, "total": 9, "tokens_per_s": 7.5})
    line = {"step": 20, "total_steps": 60, "train/loss": 1.25, "train/tok_s_useful": 900.0, "train/mfu": 0.5}
    gauges.take({"event": "progress", "stage": "distill", **progress_fields(line)})
    gauges.take({"event": "note", "stage": "distill", "done": 1})
    gauges.take({"event": "progress", "stage": "curate", "done": 3})
    assert set_values == {
        ("raystill_gen_rows_done", "generate"): 5.0,
        ("raystill_gen_rows_total", "generate"): 9.0,
        ("raystill_gen_tok_s", "generate"): 7.5,
        ("raystill_train_step", "distill"): 20.0,
        ("raystill_train_steps_total", "distill"): 60.0,
        ("raystill_train_loss", "distill"): 1.25,
        ("raystill_train_tok_s_useful", "distill"): 900.0,
        ("raystill_train_mfu", "distill"): 0.5,
    }


def test_trials_are_counted_by_what_became_of_them(set_values: dict[tuple[str, str], float]) -> None:
    RunGauges("demo").set_trials(2, ["complete", "failed", "unfinished", "complete", "stopped"])
    assert {name: value for (name, _), value in set_values.items()} == {
        "raystill_sweep_trials_running": 2.0,
        "raystill_sweep_trials_stopped": 1.0,
        "raystill_sweep_trials_done": 2.0,
        "raystill_sweep_trials_failed": 1.0,
    }


def test_the_dashboard_draws_what_is_exported_and_nothing_else() -> None:
    text = (ROOT / "cluster" / "grafana_dashboard.json").read_text(encoding="utf-8")
    asked = {
        name.removeprefix("ray_")
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_raystill_\w+", target["expr"])
    }
    assert asked == {*TEACHER_METRICS, *TRAINING_METRICS, *SWEEP_METRICS, *DISK_METRICS}
