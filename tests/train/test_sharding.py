"""FSDP2 on two gloo workers: the losses, checkpoints and weights of one worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.settings import resolve_settings
from raystill.train.sharding import choose_parallelism, is_sharded, make_whole
from raystill.train.worker import train_worker

GIB = 1 << 30
LORA = {"peft": {"lora": {"r": 4, "lora_alpha": 8, "modules_to_save": ["lm_head", "embed_tokens"]}}}


class StopError(Exception):
    """Ends a run from within."""


class StopAt:
    """Raises on every worker once a step has been saved."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        if step == self.step:
            raise StopError


def run_worker(rank: int, runs: list[tuple[str, int | None]], rendezvous: str) -> None:
    """One of two workers: trains every config of `runs` in turn, stopping where it says."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    for text, stop in runs:
        config = Config.model_validate_json(text)
        job = TrainJob(config, RunPaths.from_config(config), "distill", "cpu", 1)
        try:
            train_worker(job, WorkerGroup(rank, 2), StopAt(stop))
        except StopError:
            assert stop is not None
    torch.distributed.destroy_process_group()


def test_two_workers_with_parts_of_the_model_end_where_one_does(world: Any, tmp_path: Path) -> None:
    """Whole and LoRA, tied and untied, an odd number of micro-batches, a stop and a resume in the middle."""
    cases = {"full": ({}, True), "untied": ({}, False), "lora": (LORA, True)}
    runs: list[tuple[str, int | None]] = []
    configs = {}
    for name, (peft, tied) in cases.items():
        shared = {"student": {"tie_word_embeddings": tied}}
        rows = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, **peft}
        one = world.config(
            f"{name}1", **shared, train={"distillation": {**rows, "gradient_accumulation_steps": 2}}
        )
        two = world.config(
            f"{name}2", **shared, train={"distillation": rows},
            training={"num_workers": 2, "parallelism": "fsdp"},
        )  # fmt: skip
        configs[name] = one, two
        world.list_requests(world.paths(two))
        runs += [(two.model_dump_json(), 4), (two.model_dump_json(), None)]
    torch.multiprocessing.spawn(run_worker, (runs, str(tmp_path / "meet")), 2)
    for name, (one, two) in configs.items():
        alone = world.train(one)["metrics"]
        lines = world.metrics(two)
        last = {key: value for line in lines for key, value in line.items()}
        for key in ("train/loss", "eval/loss", "train/kd_kl"):
            expected = alone[f"final_{key.replace('/', '_')}"]
            assert last[key] == pytest.approx(expected, rel=1e-4), (name, key)
        first, second = (load_file(world.paths(c).model("distill") / "model.safetensors") for c in (one, two))
        assert first.keys() == second.keys()
        for tensor in first:
            torch.testing.assert_close(second[tensor], first[tensor], rtol=1e-2, atol=2e-4)


def test_a_checkpoint_of_parts_continues_on_one_worker(world: Any, tmp_path: Path) -> None:
    sections = {"train": {"distillation": {"per_device_train_batch_size": 4}}}
    two = world.config("both", training={"num_workers": 2, "parallelism": "fsdp"}, **sections)
    world.list_requests(world.paths(two))
    runs = [(two.model_dump_json(), 4)]
    torch.multiprocessing.spawn(run_worker, (runs, str(tmp_path / "meet")), 2)
    rows = {"train": {"distillation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}}}
    alone, resumed = world.config("alone", **rows), world.config("both", **rows)
    world.train(alone)
    assert world.train(resumed)["counts"]["steps"] == 6
    first, second = (
        load_file(world.paths(c).model("distill") / "model.safetensors") for c in (alone, resumed)
    )
    for tensor in first:
        torch.testing.assert_close(second[tensor], first[tensor], rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize(
    ("asked", "workers", "gpu_bytes", "expected"),
    [
        ("auto", 1, GIB, "ddp"),
        ("fsdp", 1, None, "ddp"),
        ("fsdp", 2, None, "fsdp"),
        ("ddp", 2, GIB, "ddp"),
        ("auto", 2, None, "ddp"),
        ("auto", 2, 30 * GIB, "ddp"),
        ("auto", 2, 25 * GIB, "fsdp"),
    ],
)
def test_auto_cuts_what_would_fill_a_gpu(
    empty_world: Any, asked: Any, workers: int, gpu_bytes: int | None, expected: str
) -> None:
    """A billion parameters that train take 16 GB with their gradients and moments."""
    settings = resolve_settings(empty_world.config(), "distill")
    settings = replace(settings, parallelism=asked, num_workers=workers)
    assert choose_parallelism(settings, trained=10**9, frozen=0, gpu_bytes=gpu_bytes) == expected


def test_a_model_that_is_not_cut_is_left_alone() -> None:
    network = torch.nn.Linear(2, 2)
    weight = network.weight
    assert not is_sharded(network)
    make_whole(network)
    assert torch.equal(network.weight, weight)


def test_recomputing_activations_changes_no_bit(world: Any) -> None:
    plain = world.config("plain", train={"distillation": {"peft": {"lora": {"r": 4, "lora_dropout": 0.1}}}})
    again = world.config(
        "again",
        train={"distillation": {"peft": {"lora": {"r": 4, "lora_dropout": 0.1}}}},
        training={"gradient_checkpointing": True},
    )
    world.train(plain)
    world.train(again)
    assert world.weights(plain) == world.weights(again)
