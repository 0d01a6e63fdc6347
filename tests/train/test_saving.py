"""A run's checkpoints: the best by a measurement stay, and the log says what each save did."""

from __future__ import annotations

import json
from typing import Any

from raystill.checkpoint.pins import pin
from raystill.checkpoint.store import list_checkpoints, load_checkpoint_manifest, step_of
from raystill.train.group import WorkerGroup
from raystill.train.worker import train_worker


class PinOne:
    """A reporter that pins a step as soon as a later one is being saved."""

    def __init__(self, world: Any, config: Any, step: int) -> None:
        self.directory, self.step = world.paths(config).checkpoints("distill"), step

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        if step == self.step + 1:
            pin(self.directory, self.step)


def test_best_pinned_milestones_and_recent_ones_stay(world: Any) -> None:
    cleanup = {"max_checkpoints": 2, "keep_best": 1, "mode": "max"}
    config = world.config(
        training={"steps": 20, "save_every": 1, "checkpoint_cleanup": cleanup},
        train={"distillation": {"evaluation_strategy": "steps"}},
    )
    train_worker(world.job(config), WorkerGroup(), PinOne(world, config, 7))
    losses = {line["step"]: line["eval/loss"] for line in world.metrics(config) if "eval/loss" in line}
    assert len(losses) == 20
    best = max(losses, key=lambda step: losses[step])
    kept = {step_of(path): path for path in list_checkpoints(world.paths(config).checkpoints("distill"))}
    assert set(kept) == {2, 5, 7, 10, 15, 17, 18, 19, 20, best}
    for step, path in kept.items():
        assert load_checkpoint_manifest(path).metrics["eval/loss"] == losses[step or 0]
    log = [json.loads(line) for line in world.paths(config).run_log.read_text().splitlines()]
    saves = [line for line in log if line["event"] == "checkpoint_saved"]
    assert [line["step"] for line in saves] == list(range(1, 21))
    assert sorted(step for line in saves for step in line["deleted"]) == sorted(set(range(1, 21)) - set(kept))
    assert all(line["num_bytes"] > 0 and line["seconds"] >= 0 and not line["failed"] for line in saves)
