"""FSDP2 on two gloo workers: the losses, checkpoints and weights of one worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raystill.checkpoint.parts import part_names
from raystill.checkpoint.store import latest_valid, load_checkpoint
from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.settings import resolve_settings
from raystill.train.sharding import choose_parallelism, is_sharded, make_whole
from raystill.train.worker import train_worker

GIB = 1 << 30
LORA = {
    "peft": {
        "lora": {
            "r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,  # its draws depend on the number of workers
            "modules_to_save": ["lm_head", "embed_tokens"],
        }
    }
}


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
        torch.distributed.barrier()  # a save may still be on its way to the disk
    torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Pair:
    """The same training by one worker and by two that hold parts of the model."""

    one: Config
    two: Config


def make_pair(world: Any, name: str, peft: dict[str, Any], tied: bool) -> Pair:
    rows = {"per_device_train_batch_size": 4, **peft}
    shared = {"student": {"tie_word_embeddings": tied}}
    distillation = {**rows, "gradient_accumulation_steps": 2}
    # Padded, the last rows of an epoch are one micro-batch, and the second worker has none.
    steps = {"steps": 8, "packing": "on" if tied else "off"}
    one = world.config(f"{name}_one", **shared, train={"distillation": distillation}, training=steps)
    parts = {**steps, "num_workers": 2, "parallelism": "fsdp"}
    two = world.config(f"{name}_two", **shared, train={"distillation": rows}, training=parts)
    return Pair(one, two)


def weights(world: Any, config: Config) -> dict[str, torch.Tensor]:
    return load_file(world.paths(config).model("distill") / "model.safetensors")


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-2, atol=2e-4)


def assert_in_parts(path: Path | None) -> None:
    """Two workers have saved about half of the model each, and nothing is there twice."""
    assert path is not None
    sizes = {file.name: file.stat().st_size for file in path.glob("*.safetensors")}
    names = [*part_names("model", 2), *part_names("optimizer", 2), *part_names("source", 2)]
    assert sorted(sizes) == sorted(names)
    whole = load_checkpoint(path).tensors
    assert {len(named) for named in whole.values() if named} == {len(whole["model"]), 3 * len(whole["model"])}
    for group in ("model", "optimizer"):
        expected = sum(tensor.numel() * tensor.element_size() for tensor in whole[group].values())
        parts = [sizes[name] for name in part_names(group, 2)]
        assert expected < sum(parts) < 1.2 * expected + 20_000  # headers
        assert max(parts) < 0.7 * sum(parts)


def test_two_workers_with_parts_of_the_model_end_where_one_does(world: Any, tmp_path: Path) -> None:
    """Whole, LoRA, untied; a step with nothing for one of them; a stop in the middle, gone on with by the two
    workers or by one."""
    cases: dict[str, tuple[dict[str, Any], bool]] = {
        "full": ({}, True),
        "untied": ({}, False),
        "lora": (LORA, True),
    }
    pairs = {name: make_pair(world, name, *case) for name, case in cases.items()}
    moved = make_pair(world, "moved", {}, True).two
    runs = [(moved.model_dump_json(), 4), (pairs["full"].two.model_dump_json(), 4)]
    for pair in pairs.values():
        world.list_requests(world.paths(pair.two))
        runs.append((pair.two.model_dump_json(), None))
    world.list_requests(world.paths(moved))
    torch.multiprocessing.spawn(run_worker, (runs, str(tmp_path / "meet")), 2)
    for name, pair in pairs.items():
        alone = world.train(pair.one)["metrics"]
        last = {key: value for line in world.metrics(pair.two) for key, value in line.items()}
        for key in ("train/loss", "eval/loss", "train/kd_kl"):
            expected = alone[f"final_{key.replace('/', '_')}"]
            assert last[key] == pytest.approx(expected, rel=1e-4), (name, key)
        assert_close(weights(world, pair.one), weights(world, pair.two))
    values = pairs["full"].one.model_dump()
    values["run"]["name"] = "moved_two"
    resumed = Config.model_validate(values)
    assert_in_parts(latest_valid(world.paths(moved).checkpoints("distill")).path)
    assert world.train(resumed)["counts"]["steps"] == 8
    assert_close(weights(world, pairs["full"].one), weights(world, resumed))


@pytest.mark.parametrize(
    ("asked", "workers", "gpu_bytes", "expected"),
    [
        ("auto", 1, GIB, "ddp"),
        ("fsdp", 1, None, "ddp"),
        ("fsdp", 2, None, "fsdp"),
        ("ddp", 2, GIB, "ddp"),
        ("auto", 2, None, "ddp"),
        ("auto", 2, 30 * GIB, "ddp"),
        ("auto", 2, 24 * GIB, "fsdp"),
    ],
)
def test_auto_cuts_what_would_fill_a_gpu(
    empty_world: Any, asked: Any, workers: int, gpu_bytes: int | None, expected: str
) -> None:
    """A billion parameters that train take 16 GB with their gradients and moments."""
    settings = resolve_settings(empty_world.config(), "distill")
    settings = replace(settings, parallelism=asked)
    assert choose_parallelism(settings, workers, trained=10**9, frozen=0, gpu_bytes=gpu_bytes) == expected


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
