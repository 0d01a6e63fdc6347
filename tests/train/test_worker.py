"""The loop: it learns, resumes byte for byte, survives bad numbers and refuses empty data."""

from __future__ import annotations

from typing import Any


def test_loss_decreases_and_everything_is_on_disk(world: Any) -> None:
    config = world.config(training={"steps": 30, "save_every": 10, "log_every": 5})
    summary = world.train(config)
    metrics = world.metrics(config)
    losses = [line["train/loss"] for line in metrics if "train/loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    evals = [line["eval/loss"] for line in metrics if "eval/loss" in line]
    assert evals[-1] < evals[0]
    assert summary["counts"]["steps"] == 30
    paths = world.paths(config)
    for directory in (paths.model("distill"), paths.initial_model("distill")):
        assert (directory / "model.safetensors").exists() and (directory / "tokenizer.json").exists()
