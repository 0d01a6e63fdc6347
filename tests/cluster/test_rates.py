"""Rates of finished stages are remembered by stage, machine and model size, and plans rest on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystill.cluster.rates import (
    answer_key,
    load_rates,
    machine_name,
    rate_key,
    rates_path,
    remember_rate,
    startup_key,
)
from raystill.cluster.workload import estimate_workload
from raystill.config.schema import Config
from raystill.run.manifest import Manifest, load_manifest, save_manifest
from raystill.run.paths import RunPaths


def trained(seconds: float) -> Manifest:
    counts = {"parameters": 500, "steps": 10}
    return Manifest(stage="sft", fingerprint="x", config={}, inputs={}, counts=counts, seconds=seconds)


def make(tmp_path: Path) -> tuple[Config, RunPaths]:
    """A run of 50 prompts of 600 tokens and 400 of answers; ten steps of five rows are 1,000 tokens."""
    config = Config.model_validate(
        {
            "run": {"dir": str(tmp_path)},
            "cluster": {"num_cpus": 2},
            "teacher": {"open": {"model": {"name": "t"}, "pipeline": {"max_new_tokens": 40}}},
            "train": {"sft": {"per_device_train_batch_size": 5}},
        }
    )
    paths = RunPaths.from_config(config)
    counts = {"kept": 50, "eval": 0}
    prepared = Manifest(
        stage="prepare", fingerprint="p", config={}, inputs={}, counts=counts,
        metrics={"prompt_tokens": {"total": 600}},
    )  # fmt: skip
    save_manifest(paths.stage_dir("prepare"), prepared)
    save_manifest(paths.stage_dir("generate"), generated())
    return config, paths


def generated() -> Manifest:
    counts = {"completion_tokens": 400, "done": 50, "requests": 50}
    return Manifest(stage="generate", fingerprint="g", config={}, inputs={}, counts=counts, seconds=5.0)


def test_rates_are_kept_and_follow_new_runs(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    machine = machine_name("cpu", 2)
    key, startup = rate_key("sft", machine, 500), startup_key("sft", machine)
    assert rate_key("sft", machine, 600) == key != rate_key("sft", machine_name("cpu", 4), 500)
    remember_rate(config, paths, trained(3.0), "cpu")
    assert load_rates(paths) == {key: pytest.approx(1e6), startup: 0.01}
    remember_rate(config, paths, trained(1.0), "cpu")
    assert load_rates(paths)[key] == pytest.approx(2e6)
    remember_rate(config, paths, trained(0.1), "cpu")  # too short to say anything
    assert load_rates(paths)[key] == pytest.approx(2e6)
    rates_path(paths).write_text("[1", encoding="utf-8")
    assert load_rates(paths) == {}


def test_what_a_stage_takes_besides_its_work_is_kept_apart(tmp_path: Path) -> None:
    """So that a short run foretells a long one."""
    config, paths = make(tmp_path)
    manifest = trained(10.0).model_copy(update={"metrics": {"loop_seconds": 3.0}})
    remember_rate(config, paths, manifest, "cpu")
    machine = machine_name("cpu", 2)
    rates = load_rates(paths)
    assert rates[rate_key("sft", machine, 500)] == pytest.approx(1e6)
    assert rates[startup_key("sft", machine)] == pytest.approx(7.0)


def test_plans_know_how_long_answers_were(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    remember_rate(config, paths, generated(), "cpu")
    remembered = load_rates(paths)[answer_key(config)]
    prepared = load_manifest(paths.stage_dir("prepare"))
    assert estimate_workload(config, prepared, None).completion_tokens == 1000  # half of the longest
    found = estimate_workload(config, prepared, None, remembered)
    assert found.completion_tokens == 400 and "earlier run" in found.notes[0]
