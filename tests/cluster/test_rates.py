"""Rates of finished stages are remembered by stage, machine and model size, and plans rest on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystill.cluster.rates import load_rates, machine_name, rate_key, rates_path, remember_rate
from raystill.config.schema import Config
from raystill.run.manifest import Manifest
from raystill.run.paths import RunPaths


def trained(seconds: float, tokens: int = 1000) -> Manifest:
    counts = {"parameters": 500, "tokens_trained": tokens}
    return Manifest(stage="sft", fingerprint="x", config={}, inputs={}, counts=counts, seconds=seconds)


def test_rates_are_kept_and_follow_new_runs(tmp_path: Path) -> None:
    config = Config.model_validate({"run": {"dir": str(tmp_path)}, "cluster": {"num_cpus": 2}})
    paths = RunPaths.from_config(config)
    key = rate_key("sft", machine_name("cpu", 2), 500)
    assert rate_key("sft", machine_name("cpu", 2), 600) == key != rate_key("sft", machine_name("cpu", 4), 500)
    remember_rate(config, paths, trained(3.0), "cpu")
    assert load_rates(paths) == {key: pytest.approx(1e6)}
    remember_rate(config, paths, trained(1.0), "cpu")
    assert load_rates(paths) == {key: pytest.approx(2e6)}
    remember_rate(config, paths, trained(0.1), "cpu")  # too short to say anything
    assert load_rates(paths) == {key: pytest.approx(2e6)}
    rates_path(paths).write_text("[1", encoding="utf-8")
    assert load_rates(paths) == {}
