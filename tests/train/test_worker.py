"""The loop: it learns, resumes byte for byte, survives bad numbers and refuses empty data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystill.checkpoint.store import list_checkpoints
from raystill.errors import DataError, DivergenceError, EnvironmentFault
from raystill.train import worker as worker_module
from raystill.train.assembly import TrainRun
from raystill.train.group import WorkerGroup
from raystill.train.worker import train_worker

# One process, no Ray: what a training worker runs.
RUN_IN_CHILD = """
import sys
from pathlib import Path
from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.worker import train_worker

class Silent:
    def report(self, step, metrics): pass

config = Config.model_validate_json(Path(sys.argv[1]).read_text())
train_worker(TrainJob(config, RunPaths.from_config(config), "distill", "cpu", 1), WorkerGroup(), Silent())
"""


class StopError(Exception):
    """Ends a run from within."""


class StopAfter:
    """A reporter that ends the run after a number of saves."""

    def __init__(self, saves: int) -> None:
        self.left = saves

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise StopError


_RATES = ("tok_s", "time/", "mfu", "ckpt/", "mem/")


def without_rates(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what depends on the clock."""
    return {k: v for k, v in line.items() if not any(word in k for word in _RATES)}


def test_loss_decreases_and_everything_is_on_disk(world: Any) -> None:
    config = world.config(training={"steps": 30, "save_every": 10, "log_every": 5})
    summary = world.train(config)
    metrics = world.metrics(config)
    losses = [line["train/loss"] for line in metrics if "train/loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    evals = [line["eval/loss"] for line in metrics if "eval/loss" in line]
    assert evals[-1] < evals[0]
    assert summary["counts"]["steps"] == 30 and summary["counts"]["teacher_passes"] == 0
    assert summary["metrics"]["final_train_loss"] == losses[-1]
    paths = world.paths(config)
    for directory in (paths.model("distill"), paths.initial_model("distill")):
        assert (directory / "model.safetensors").exists() and (directory / "tokenizer.json").exists()
    logged = next(line for line in metrics if "train/loss" in line)
    assert {"train/ce", "train/kd_kl", "train/grad_norm", "train/lr", "train/tok_s_useful",
            "train/tok_s_raw", "train/pad_frac", "train/mfu", "train/mfu_6nd", "time/forward",
            "time/save", "ckpt/blocked_ms", "mem/peak_gb", "step",
            "total_steps"} <= logged.keys()  # fmt: skip
    assert logged["mem/peak_gb"] > 0.05 and logged["ckpt/blocked_ms"] >= 0.0


def test_milestones_and_the_most_recent_checkpoints_stay(world: Any) -> None:
    config = world.config(
        training={"steps": 20, "save_every": 3, "checkpoint_cleanup": {"max_checkpoints": 1}}
    )
    world.train(config)
    steps = [int(path.name[-8:]) for path in list_checkpoints(world.paths(config).checkpoints("distill"))]
    assert steps == [2, 5, 10, 12, 15, 18, 20]


@pytest.mark.parametrize("stage", ["sft", "distill"])
@pytest.mark.parametrize("saves", [1, 2])
def test_a_stopped_run_ends_byte_equal_to_an_uninterrupted_one(world: Any, stage: Any, saves: int) -> None:
    whole, broken = world.config("whole"), world.config("broken")
    world.train(whole, stage)
    with pytest.raises(StopError):
        train_worker(world.job(broken, stage), WorkerGroup(), StopAfter(saves))
    assert not world.paths(broken).model(stage).exists()
    world.train(broken, stage)
    assert world.weights(broken, stage) == world.weights(whole, stage)
    fixed = [without_rates(line) for line in world.metrics(whole, stage)]
    again = [without_rates(line) for line in world.metrics(broken, stage)]
    assert fixed == again


def test_kill_9_at_any_step_ends_byte_equal(world: Any, tmp_path: Path) -> None:
    """F25."""
    whole = world.config("whole")
    world.train(whole)
    killed = world.config("killed")
    world.list_requests(world.paths(killed))
    file = tmp_path / "config.json"
    file.write_text(killed.model_dump_json())
    command = [sys.executable, "-c", RUN_IN_CHILD, str(file)]
    for failpoint in ("train:step:3", "checkpoint:group_written:3"):
        environment = {**os.environ, "RAYSTILL_FAILPOINT": failpoint, "OMP_NUM_THREADS": "1"}
        child = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert child.returncode == -9, child.stderr.decode()
    world.train(killed)
    assert world.weights(killed) == world.weights(whole)


def test_a_damaged_newest_checkpoint_is_passed_over(world: Any) -> None:
    """F17."""
    whole, broken = world.config("whole"), world.config("broken")
    world.train(whole)
    with pytest.raises(StopError):
        train_worker(world.job(broken), WorkerGroup(), StopAfter(3))
    newest = list_checkpoints(world.paths(broken).checkpoints("distill"))[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    world.train(broken)
    assert world.weights(broken) == world.weights(whole)


def test_a_finished_run_does_nothing_again(world: Any) -> None:
    config = world.config()
    first = world.train(config)
    shutil.rmtree(world.paths(config).model("distill"))
    assert world.train(config)["counts"] == first["counts"]


def test_distillation_with_only_cross_entropy_is_sft_bit_for_bit(world: Any) -> None:
    """One loop: the objective is the only difference, and with kl_weight 0 there is none."""
    config = world.config(
        train={"sft": {"dataset": {"seed": 42}}}, losses={"kl_weight": 0.0, "ce_weight": 1.0}
    )
    world.train(config, "sft")
    world.train(config, "distill")
    assert world.weights(config, "sft") == world.weights(config, "distill")


def test_the_reverse_divergence_and_a_narrower_view_train_something_else(world: Any) -> None:
    forward, reverse = world.config("f"), world.config("r", losses={"divergence": "reverse_kl"})
    narrow = world.config("n", losses={"num_logprobs": 2})
    for config in (forward, reverse, narrow):
        world.train(config)
    assert len({world.weights(config) for config in (forward, reverse, narrow)}) == 3


class Poison:
    """Makes the loss of some steps infinite by spoiling a weight for the time of the step."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps
        self.original = worker_module.train_step

    def __call__(self, state: Any, *arguments: Any) -> Any:
        if state.step not in self.steps:
            return self.original(state, *arguments)
        weight = next(iter(state.student.network.parameters()))
        with torch.no_grad():
            kept = weight[0].clone()
            weight[0] = torch.nan
        before = {name: p.clone() for name, p in state.trainable().items()}
        result = self.original(state, *arguments)
        for name, parameter in state.trainable().items():
            assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num())
        with torch.no_grad():
            weight[0] = kept
        return result


def poison(world: Any, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    # Token 0 must be in every batch for its embedding to matter: it is tied to the head, so it always is.
    monkeypatch.setattr(worker_module, "train_step", Poison(steps))


def test_a_non_finite_step_is_skipped_and_counted(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """F21."""
    config = world.config()
    poison(world, monkeypatch, {2, 4})
    counts = world.train(config)["counts"]
    assert counts["steps_nonfinite"] == 2 and counts["steps"] == 6
    assert [line["train/nonfinite_steps"] for line in world.metrics(config) if "train/lr" in line][-1] == 2


def test_too_many_non_finite_steps_stop_with_the_last_good_checkpoint(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F21."""
    config = world.config(training={"max_nonfinite_steps": 1, "save_every": 3})
    poison(world, monkeypatch, {3, 4, 5})
    with pytest.raises(DivergenceError, match="step-00000003") as caught:
        world.train(config)
    assert caught.value.exit_code == 6
    assert not world.paths(config).model("distill").exists()


def test_a_batch_that_explodes_is_skipped_counted_and_shown(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F23: one step's gradient times 10^6 in the middle of a run; the weights end as good as without it."""
    training = {"steps": 40, "save_every": 40, "log_every": 1}
    calm, config = world.config("calm", training=training), world.config("run", training=training)
    world.train(calm)
    original, seen = worker_module.train_step, {}

    def explode(state: Any, *arguments: Any) -> Any:
        if state.step != 30:
            return original(state, *arguments)
        weights = state.trainable().values()
        hooks = [weight.register_hook(lambda gradient: gradient * 1e6) for weight in weights]
        before = [weight.detach().clone() for weight in weights]
        result = original(state, *arguments)
        seen["norm"] = state.counters.recent_norms[-1]
        assert all(torch.equal(*pair) for pair in zip(before, weights, strict=True))
        for hook in hooks:
            hook.remove()
        return result

    monkeypatch.setattr(worker_module, "train_step", explode)
    assert world.train(config)["counts"]["steps_spike"] == 1
    lines = {line["step"]: line for line in world.metrics(config) if "train/spike_steps" in line}
    assert (lines[30]["train/spike_steps"], lines[31]["train/spike_steps"]) == (0, 1)
    assert seen["norm"] == lines[30]["train/grad_norm"]  # no part of what is normal
    usual = [line["train/loss"] for line in world.metrics(calm) if "train/loss" in line]
    assert lines[40]["train/loss"] == pytest.approx(usual[-1], rel=0.2)


def test_a_step_without_loss_tokens_is_skipped_and_counted(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F24."""
    original = worker_module.assemble

    def assemble(*arguments: Any) -> TrainRun:
        run = original(*arguments)
        plan = run.planner.plan

        def masked(step: int, rank: int) -> Any:
            made = plan(step, rank)
            return type(made)(made.micro_batches, 0) if step == 1 else made

        monkeypatch.setattr(run.planner, "plan", masked)
        return run

    monkeypatch.setattr(worker_module, "assemble", assemble)
    counts = world.train(world.config())["counts"]
    assert counts["steps_masked"] == 1 and counts["steps"] == 6


def test_data_without_loss_tokens_is_an_error_before_step_1(world: Any) -> None:
    """F24."""
    config = world.config(training={"max_seq_len": 8})
    with pytest.raises(DataError, match="left_out_too_long 55"):
        world.train(config)
    assert not world.paths(config).stage_dir("distill").exists()


def test_a_full_disk_stops_the_run_with_its_checkpoints_intact(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14."""
    config = world.config()
    calls: list[int] = []

    def no_room(directory: Path, rules: Any, num_bytes: int, **kwargs: Any) -> tuple[int, ...]:
        calls.append(num_bytes)
        if len(calls) > 2:
            raise EnvironmentFault("not enough disk")
        return ()

    monkeypatch.setattr("raystill.train.saving.make_room", no_room)
    with pytest.raises(EnvironmentFault):
        world.train(config)
    assert len(list_checkpoints(world.paths(config).checkpoints("distill"))) == 2
    assert calls[0] > 3 * 4 * 20_000


def test_other_training_rows_are_not_continued(world: Any, chat: Any, store_writer: Any, rows: Any) -> None:
    """I43."""
    config = world.config()
    with pytest.raises(StopError):
        train_worker(world.job(config), WorkerGroup(), StopAfter(1))
    shutil.rmtree(world.root / "store")
    store_writer(world.root / "store", chat, rows[:40])
    with pytest.raises(DataError, match="other training rows"):
        world.train(config)


def test_metrics_are_plain_json(world: Any) -> None:
    config = world.config()
    world.train(config)
    for line in world.metrics(config):
        assert all(isinstance(value, int | float) and np.isfinite(value) for value in line.values())
        json.dumps(line)


def test_bfloat16_autocast_trains_float32_weights(world: Any) -> None:
    exact, rounded = world.config("exact"), world.config("rounded", train={"distillation": {"bf16": True}})
    full, half = (world.train(config)["metrics"]["final_eval_loss"] for config in (exact, rounded))
    assert half != full and half == pytest.approx(full, rel=0.05)
    from safetensors.torch import load_file

    weights = load_file(world.paths(rounded).model("distill") / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_what_happened_along_the_way_is_noted(world: Any) -> None:
    """F17: a damaged checkpoint and a template that isn't the teacher's: training goes on, and says so."""
    directory = world.root / "polite"
    world.chat.tokenizer.save_pretrained(directory)
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\\n", "helper\\n"))
    config = world.config(student={"tokenizer": str(directory)})
    with pytest.raises(StopError):
        train_worker(world.job(config), WorkerGroup(), StopAfter(2))
    newest = list_checkpoints(world.paths(config).checkpoints("distill"))[-1]
    (newest / "state.json").write_text("{")
    notes = " ".join(world.train(config)["notes"])
    assert "chat template differs" in notes and f"{newest.name} was passed over" in notes
