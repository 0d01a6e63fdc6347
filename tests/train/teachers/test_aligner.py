"""Hidden-state alignment inside a run: it trains, it is remembered, and no export has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raystill.checkpoint.store import latest_valid, load_checkpoint
from raystill.errors import ConfigError
from raystill.train.assembly import assemble
from raystill.train.batches import collate
from raystill.train.group import WorkerGroup
from raystill.train.rollouts.snapshot import iter_weights
from raystill.train.teachers.aligner import PROJECTIONS
from raystill.train.worker import train_worker


class StopError(Exception):
    """Ends a run from within."""


class StopAfterOne:
    def report(self, step: int, metrics: dict[str, Any]) -> None:
        raise StopError


def aligned(world: Any, name: str, teacher: str, **over: Any) -> Any:
    hidden = {"weight": 1.0, "layer_map": [[1, 2], [2, 3]]} | over.pop("hidden", {})
    return world.config(
        name=name,
        train={"distillation": {"teacher": {"source": "online", "models": [{"name": teacher}]}, **over}},
        losses={"kl_weight": 1.0, "ce_weight": 0.0, "hidden": hidden},
        training={"steps": 6, "save_every": 3, "log_every": 1},
    )


@pytest.fixture
def teacher(world: Any) -> str:
    """A wider and deeper model."""
    larger = {"hidden_size": 48, "num_hidden_layers": 3}
    config = world.config(name="teacher", student=larger, training={"steps": 1})
    world.train(config, "sft")
    return str(world.paths(config).model("sft"))


def test_it_trains_resumes_and_leaves_nothing_behind(world: Any, teacher: str) -> None:
    whole, stopped = aligned(world, "whole", teacher), aligned(world, "stopped", teacher)
    world.train(whole)
    values = [line["train/hidden"] for line in world.metrics(whole) if "train/hidden" in line]
    assert len(values) == 6
    assert values[-1] < values[0]
    with pytest.raises(StopError):
        train_worker(world.job(stopped), WorkerGroup(), StopAfterOne())
    found = latest_valid(world.paths(stopped).checkpoints("distill")).path
    assert found is not None
    assert any(PROJECTIONS in name for name in load_checkpoint(found).tensors["model"])
    world.train(stopped)
    assert world.weights(stopped) == world.weights(whole)
    for directory in (world.paths(whole).model("distill"), world.paths(whole).initial_model("distill")):
        assert not any(PROJECTIONS in name for name in load_file(directory / "model.safetensors"))


def test_it_follows_from_the_first_step_of_a_ramp(world: Any, teacher: str) -> None:
    """The KD term has no weight yet, and the teacher is asked all the same; layers may be computed twice."""
    ramp = {"kl_weight": {"type": "linear", "start": 0.0, "end": 1.0}, "ce_weight": 0.5}

    def ramped(name: str, *, twice: bool) -> Any:
        values = aligned(world, name, teacher).model_dump()
        values["losses"] |= ramp
        values["training"] |= {"steps": 3, "gradient_checkpointing": twice}
        return type(world.config()).model_validate(values)

    plain, again = ramped("plain", twice=False), ramped("again", twice=True)
    for config in (plain, again):
        world.train(config)
    lines = [line for line in world.metrics(plain) if "train/loss" in line]
    assert len(lines) == 3
    for line in lines:
        parts = line["train/ce_weighted"] + line["train/kd_weighted"] + line["train/hidden_weighted"]
        assert line["train/loss"] == pytest.approx(parts) and line["train/hidden"] > 0
    assert world.weights(plain) == world.weights(again)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_term_reaches_the_student_and_its_projections(
    world: Any, teacher: str, lora: dict[str, int] | None
) -> None:
    config = aligned(world, "run", teacher, hidden={"type": "cosine"}, peft={"lora": lora})
    run = assemble(world.job(config), WorkerGroup())
    student, alignment = run.state.student, run.source.alignment
    assert alignment is not None
    rows = run.source.work(0).plan.micro_batches[0]
    batch = collate(run.data.train, rows, student.pad_id, student.device, packed=run.settings.packed)
    hidden_ND = student.hidden_states(batch.input_ids_BT, batch.loss_index_N, batch.row_lengths)
    whole = run.objective(hidden_ND, student.head(), batch)
    assert "hidden" in whole.metrics
    whole.sum.backward()  # type: ignore[no-untyped-call]
    moved = {
        name for name, p in run.state.trainable().items() if p.grad is not None and p.grad.abs().max() > 0
    }
    assert any(PROJECTIONS in name for name in moved)
    assert any("layers.0" in name for name in moved)
    assert not any(PROJECTIONS in name for name, _ in iter_weights(student))  # an engine knows no such weight
    run.source.close()
    assert not any(PROJECTIONS in name for name, _ in student.network.named_parameters())
    with torch.no_grad():
        student.hidden_states(batch.input_ids_BT, batch.loss_index_N, batch.row_lengths)


def test_a_model_can_not_follow_itself_through_an_adapter(world: Any) -> None:
    config = aligned(world, "run", "student", hidden={"layer_map": [[1, 1]]}, peft={"lora": {"r": 4}})
    with pytest.raises(ConfigError, match="one teacher"):
        assemble(world.job(config), WorkerGroup())
