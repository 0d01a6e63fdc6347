"""Models that teach in process: as good as a store that holds everything, and silent where nothing differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raystill.errors import ConfigError, DataError
from raystill.train.assembly import TrainRun, assemble
from raystill.train.batches import collate
from raystill.train.students.base import load_causal_lm
from raystill.train.group import WorkerGroup
from raystill.train.teachers.frozen import fit_head

KD = {"kl_weight": 1.0, "ce_weight": 0.0}


def source(name: str = "student", **more: Any) -> dict[str, Any]:
    return {"distillation": {"teacher": {"source": "online", "models": [{"name": name}], **more}}}


def first_batch(run: TrainRun) -> Any:
    rows = run.source.work(0).plan.micro_batches[0]
    return collate(run.data.train, rows, run.state.student.pad_id, run.state.student.device)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_a_student_that_teaches_itself_learns_nothing(world: Any, divergence: str) -> None:
    config = world.config(
        train=source(), losses={**KD, "divergence": divergence}, training={"steps": 2, "log_every": 1}
    )
    world.train(config)
    assert all(abs(line["train/loss"]) < 1e-6 for line in world.metrics(config) if "train/loss" in line)
    paths = world.paths(config)
    before, after = (
        load_causal_lm(str(path), "sdpa") for path in (paths.initial_model("distill"), paths.model("distill"))
    )
    for ours, theirs in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
