"""Two gloo workers end where one does: the model whole or in parts, on stored text or on rollouts."""

from __future__ import annotations

from dataclasses import dataclass
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
from raystill.train.worker import train_worker

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


def make_written(world: Any, judge: str) -> Pair:
    """Half of the rows are the student's own text, three steps of it at a time."""
    rollouts = {"share": 0.5, "sync_every": 3, "max_new_tokens": 8, "batch_size": 16}
    teacher = {"source": "on_policy", "models": [{"name": judge}], "rollouts": rollouts}
    losses = {"kl_weight": 1.0, "ce_weight": 0.0, "divergence": "reverse_kl"}
    steps = {"steps": 6, "log_every": 1}
    # Slowly: what rounding makes of the weights must not decide a draw.
    one: dict[str, Any] = {"teacher": teacher, "learning_rate": 1e-4}
    two = {**one, "per_device_train_batch_size": 4}
    return Pair(
        world.config("written_one", losses=losses, train={"distillation": one}, training=steps),
        world.config(
            "written_two", losses=losses, train={"distillation": two}, training={**steps, "num_workers": 2}
        ),
    )


def renamed(config: Config, name: str) -> Config:
    values = config.model_dump()
    values["run"]["name"] = name
    return Config.model_validate(values)


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


def run_by_two(world: Any, runs: list[tuple[Config, int | None]], rendezvous: Path) -> None:
    """Train every config in turn on two workers, stopped after the step that stands beside it."""
    for config, _ in runs:
        world.list_requests(world.paths(config))
    texts = [(config.model_dump_json(), stop) for config, stop in runs]
    torch.multiprocessing.spawn(run_worker, (texts, str(rendezvous)), 2)


def last_values(world: Any, config: Config) -> dict[str, Any]:
    return {key: value for line in world.metrics(config) for key, value in line.items()}


def test_two_workers_end_where_one_does(world: Any, tmp_path: Path) -> None:
    """In parts: whole, LoRA, untied; a step with nothing for one of them. On rollouts. A stop in the middle,
    gone on with by the two workers or by one, or by two after one."""
    cases: dict[str, tuple[dict[str, Any], bool]] = {
        "full": ({}, True),
        "untied": ({}, False),
        "lora": (LORA, True),
    }
    pairs = {name: make_pair(world, name, *case) for name, case in cases.items()}
    judge = world.config("judge", run={"seed": 5}, training={"steps": 1})
    world.train(judge, "sft")
    pairs["written"] = make_written(world, str(world.paths(judge).model("sft")))
    stops = {"full": 4, "written": 4}  # step 4 is inside a window of rollouts
    moved = {name: renamed(pairs[name].two, f"{name}_moved") for name in stops}
    again = renamed(pairs["written"].two, "written_again")
    runs: list[tuple[Config, int | None]] = [(moved[name], stops[name]) for name in stops]
    runs += [(pairs["full"].two, 4), (again, 4), (again, None)]
    grown = renamed(pairs["untied"].two, "untied_grown")
    with pytest.raises(StopError):  # begun by one worker that holds the whole model
        train_worker(world.job(renamed(pairs["untied"].one, "untied_grown")), WorkerGroup(), StopAt(4))
    unstopped = renamed(pairs["full"].two, "full_unstopped")
    runs += [(grown, None), (unstopped, None)]
    runs += [(pair.two, None) for pair in pairs.values()]
    run_by_two(world, runs, tmp_path / "meet")
    for name, pair in pairs.items():
        alone = world.train(pair.one)["metrics"]
        last = last_values(world, pair.two)
        for key in ("train/loss", "eval/loss", "train/kd_kl"):
            expected = alone[f"final_{key.replace('/', '_')}"]
            assert last[key] == pytest.approx(expected, rel=1e-4), (name, key)
        assert_close(weights(world, pair.one), weights(world, pair.two))
    assert_close(weights(world, pairs["untied"].one), weights(world, grown))
    written = [last_values(world, config) for config in (pairs["written"].one, pairs["written"].two)]
    for key in ("rollout/share", "rollout/tokens", "rollout/ended", "rollout/staleness"):
        assert written[0][key] == written[1][key], key
    assert world.weights(again) == world.weights(pairs["written"].two)
    assert world.weights(unstopped) == world.weights(pairs["full"].two)  # in parts, stopped and resumed
    assert_in_parts(latest_valid(world.paths(moved["full"]).checkpoints("distill")).path)
    for name, config in moved.items():
        resumed = Config.model_validate(
            {**config.model_dump(), "train": pairs[name].one.model_dump()["train"]}
        )
        resumed = resumed.model_copy(update={"training": pairs[name].one.training})
        assert world.train(resumed)["counts"]["steps"] == resumed.training.steps
        assert_close(weights(world, pairs[name].one), weights(world, resumed))
