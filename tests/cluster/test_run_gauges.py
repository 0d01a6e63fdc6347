"""Metrics of a run: what events become, and a dashboard that asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from raystill.cluster import run_gauges
from raystill.cluster.run_gauges import (
    COMPARED_EVENT,
    EVALUATION_METRICS,
    SWEEP_METRICS,
    TEACHER_METRICS,
    TRAINING_METRICS,
    RunGauges,
)
from raystill.train.stage import progress_fields

ROOT = Path(__file__).resolve().parents[2]
DISK_METRICS = {"raystill_disk_free_gb", "raystill_disk_total_gb"}
# What reports, trackers and dashboards agree on, with `/` for what Prometheus writes as `_`.
NAMES = (
    "gen/rows_done",
    "gen/rows_failed",
    "gen/tok_s",
    "gen/cost_usd",
    "gen/in_flight",
    "gen/http_429",
    "gen/http_5xx",
    "train/loss",
    "train/kd_kl",
    "train/ce",
    "train/grad_norm",
    "train/lr",
    "train/tok_s_useful",
    "train/tok_s_raw",
    "train/mfu",
    "train/pad_frac",
    "mem/peak_gb",
    "disk/free_gb",
    "ckpt/blocked_ms",
    "eval/kl_to_teacher",
    "sweep/trials_running",
    "sweep/trials_stopped",
    "sweep/trials_done",
)


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
    gauges.take({"event": "progress", "stage": "generate", "done": 5, "total": 9, "tokens_per_s": 7.5,
                 "in_flight": 3, "http_429": 2, "http_5xx": 0})  # fmt: skip
    line = {"step": 20, "total_steps": 60, "train/loss": 1.25, "train/tok_s_useful": 900.0, "train/mfu": 0.5,
            "train/lr": 1e-4, "time/save": 0.1, "ckpt/blocked_ms": 4.5, "mem/peak_gb": 1.5}  # fmt: skip
    gauges.take({"event": "progress", "stage": "distill", **progress_fields(line)})
    gauges.take({"event": "note", "stage": "distill", "done": 1})
    gauges.take({"event": "progress", "stage": "curate", "done": 3})
    assert set_values == {
        ("raystill_gen_rows_done", "generate"): 5.0,
        ("raystill_gen_rows_total", "generate"): 9.0,
        ("raystill_gen_tok_s", "generate"): 7.5,
        ("raystill_gen_in_flight", "generate"): 3.0,
        ("raystill_gen_http_429", "generate"): 2.0,
        ("raystill_gen_http_5xx", "generate"): 0.0,
        ("raystill_train_step", "distill"): 20.0,
        ("raystill_train_steps_total", "distill"): 60.0,
        ("raystill_train_loss", "distill"): 1.25,
        ("raystill_train_tok_s_useful", "distill"): 900.0,
        ("raystill_train_mfu", "distill"): 0.5,
        ("raystill_train_lr", "distill"): 1e-4,
        ("raystill_ckpt_blocked_ms", "distill"): 4.5,
        ("raystill_mem_peak_gb", "distill"): 1.5,
    }


def test_what_models_were_measured_at_is_tagged_with_who_made_them(
    set_values: dict[tuple[str, str], float],
) -> None:
    measured = {
        "eval/sft/exact_match": 0.5,
        "eval/distill/kl_to_teacher": 0.2,
        "eval/sft/exact_match_ci95": 0.1,
    }
    RunGauges("demo").take({"event": COMPARED_EVENT, "stage": "evaluate", "measured": measured})
    assert set_values == {
        ("raystill_eval_exact_match", "sft"): 0.5,
        ("raystill_eval_kl_to_teacher", "distill"): 0.2,
    }


def test_names_are_those_that_everyone_agrees_on() -> None:
    exported = {*TEACHER_METRICS, *TRAINING_METRICS, *EVALUATION_METRICS, *SWEEP_METRICS, *DISK_METRICS}
    assert {f"raystill_{name.replace('/', '_')}" for name in NAMES} <= exported


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
    assert asked == {
        *TEACHER_METRICS, *TRAINING_METRICS, *EVALUATION_METRICS, *SWEEP_METRICS, *DISK_METRICS
    }  # fmt: skip
