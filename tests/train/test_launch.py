"""Training on a real Ray: one worker, two workers, and errors that come back as ours."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from raystill.checkpoint.store import latest_valid, list_checkpoints, step_of, verify_checkpoint
from raystill.errors import ConfigError, DataError, EnvironmentFault
from raystill.run.stage import execute
from raystill.train.assembly import assemble
from raystill.train.batches import collate
from raystill.train.device import choose_num_threads, choose_precision
from raystill.train.group import WorkerGroup
from raystill.train.launch import require_resources, run_training, translate_failure
from raystill.train.pointers import listed_checkpoints
from raystill.train.settings import resolve_settings
from raystill.train.stage import DISTILL_STAGE
from raystill.train.worker import train_worker

# The loop without Ray; once everything is built, the process may have 48 MiB more and not a byte beyond.
SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from raystill.config.device_type import choose_device_type
from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.train import worker
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup

restore = worker.restore_latest

def restore_then_limit(run):
    restore(run)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 48 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

worker.restore_latest = restore_then_limit
config = Config.model_validate_json(Path(sys.argv[1]).read_text())
job = TrainJob(config, RunPaths.from_config(config), "distill", "cpu", 1)
try:
    worker.train_worker(job, WorkerGroup(), None)
except (MemoryError, RuntimeError) as error:
    print(f"{type(error).__name__}: {error}")
"""


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    import ray

    temp_dir = tempfile.mkdtemp(prefix="rt", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=80_000_000,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=temp_dir,
    )
    yield
    ray.shutdown()
    shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture
def idle_ray(ray_here: None) -> None:
    """Ray with all its CPUs free and no worker of an earlier run: both take Ray a moment after a run."""
    import ray

    deadline = time.monotonic() + 120
    num_cpus = ray.cluster_resources()["CPU"]
    while find_workers() or ray.available_resources().get("CPU", 0.0) < num_cpus - 0.01:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)


def complete_inputs(world: Any, config: Any) -> None:
    """Pretend that the stages before training are done; the store is there already."""
    from raystill.run.manifest import Manifest, save_manifest

    for name in ("generate", "score"):
        directory = world.paths(config).stage_dir(name)
        directory.mkdir(parents=True)
        save_manifest(directory, Manifest(stage=name, fingerprint=name, config={}, inputs={}))
    world.list_requests(world.paths(config))


def find_workers() -> list[psutil.Process]:
    """The training workers below this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_the_workers() -> int:
    """SIGKILL the training workers below this process; returns how many."""
    killed = 0
    for worker in find_workers():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
            killed += 1
    return killed


@pytest.mark.ray
def test_a_killed_stage_goes_on_and_ends_where_the_loop_without_ray_ends(world: Any, idle_ray: None) -> None:
    """F25: SIGKILL of the worker; the weights are equal byte for byte."""
    steps = {"steps": 300, "save_every": 20, "log_every": 1}
    alone = world.config("alone", training=steps)
    world.train(alone)
    copied = {"output_dir": str(world.root / "copy")}
    config = world.config("staged", training=steps, train={"distillation": copied})
    complete_inputs(world, config)
    killed: list[int] = []

    def kill_once(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["done"] > 20 and not killed:
            killed.append(kill_the_workers())

    with pytest.raises(EnvironmentFault, match="worker failed") as caught:
        execute(DISTILL_STAGE, config, world.paths(config), on_event=kill_once)
    assert killed == [1] and "resumes" in str(caught.value)
    events: list[dict[str, Any]] = []
    outcome = execute(DISTILL_STAGE, config, world.paths(config), on_event=events.append)
    assert world.weights(config) == world.weights(alone)
    assert (world.root / "copy" / "model.safetensors").read_bytes() == world.weights(alone)
    manifest = outcome.manifest
    assert manifest.counts["steps"] == 300 and manifest.counts["rows_train"] > 40
    assert "model/model.safetensors" in manifest.files and manifest.metrics["train_seconds"] > 0
    progress = [event for event in events if event["event"] == "progress"]
    # An evaluation has a line of its own, without the totals; which line is the first to be seen is open.
    first = next(event for event in progress if "total" in event)
    assert progress[-1]["done"] == 300 and first["total"] == 300 and "loss" in first
    assert progress[0]["done"] > 20
    assert execute(DISTILL_STAGE, config, world.paths(config)).skipped


@pytest.mark.ray
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_two_workers_end_where_one_does(world: Any, idle_ray: None, parallelism: str) -> None:
    """In parts, with a teacher in a process beside each of them."""
    teacher: dict[str, Any] = {}
    if parallelism == "fsdp":
        judge = world.config("judge", run={"seed": 5}, training={"steps": 1})
        world.train(judge, "sft")
        teacher = {"source": "online", "models": [{"name": str(world.paths(judge).model("sft"))}]}
    beside = {"worker": {"num_cpus": 1}} if teacher else {}
    one, two = (
        world.config("one", train={"distillation": {"teacher": teacher}}),
        world.config(
            "two",
            training={"num_workers": 2, "parallelism": parallelism},
            train={"distillation": {"per_device_train_batch_size": 4, "teacher": {**teacher, **beside}}},
        ),
    )
    alone = world.train(one)["metrics"]
    world.list_requests(world.paths(two))
    shared = run_training(two, world.paths(two), "distill")["metrics"]
    for name in ("final_train_loss", "final_train_ce", "final_train_kd_kl", "final_eval_loss"):
        assert shared[name] == pytest.approx(alone[name], rel=1e-4), name
    first, second = (load_file(world.paths(c).model("distill") / "model.safetensors") for c in (one, two))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-2, atol=2e-4)


@pytest.mark.ray
def test_as_many_workers_as_fit_train_the_same_steps_and_a_lost_one_is_made_up_for(
    world: Any, idle_ray: None
) -> None:
    """F25: of at most four workers with 2 CPUs each, Ray has room for two."""
    from ray.train import Result

    steps = {"steps": 300, "save_every": 20, "log_every": 1}
    alone = world.config("alone", training=steps)
    world.train(alone)
    range_ = {"num_workers": [1, 4], "cpus_per_worker": 2}
    rows = {"per_device_train_batch_size": 2}
    elastic = world.config("elastic", training=steps | range_, train={"distillation": rows})
    paths = world.paths(elastic)
    world.list_requests(paths)
    killed: list[int] = []

    def kill_once(record: dict[str, Any]) -> None:
        if record["step"] > 20 and not killed:
            killed.append(kill_the_workers())

    summary = run_training(elastic, paths, "distill", kill_once)
    assert killed == [2] and summary["metrics"]["num_workers"] == 2
    log = [json.loads(line) for line in paths.run_log.read_text(encoding="utf-8").splitlines()]
    (lost,) = [line["message"] for line in log if line["event"] == "warning"]
    assert "worker failed" in lost and "going on from step" in lost
    ours, theirs = (
        {line["step"]: line["train/loss"] for line in world.metrics(config) if "train/loss" in line}
        for config in (elastic, alone)
    )
    assert list(ours) == list(theirs) == list(range(1, 301))
    # Sums in another order: equal at first, and in the end as near as training lets rounding grow.
    for step, loss in ours.items():
        assert loss == pytest.approx(theirs[step], rel=1e-4 if step <= 10 else 2e-2), step
    (attempt,) = paths.ray_attempts("distill").iterdir()
    listed = listed_checkpoints(Result.from_path(str(attempt)))
    assert [step_of(path) for path in listed] == [30, 75, 150, 225, 240, 260, 270, 280, 300]


@pytest.mark.ray
def test_teachers_in_a_process_of_their_own_change_no_bit(world: Any, ray_here: None) -> None:
    """Two teachers, one of them with weights in bfloat16; whole distributions and best tokens; micro-batches
    of which the next is on its way while one is learnt from. What is wrong there is told here."""
    import ray

    names = []
    for seed in (5, 6):
        teacher = world.config(f"teacher{seed}", run={"seed": seed}, training={"steps": 1})
        world.train(teacher, "sft")
        names.append(str(world.paths(teacher).model("sft")))
    models = [{"name": names[0], "weight": 2.0}, {"name": names[1], "weights": "bfloat16"}]

    def online(name: str, worker: dict[str, int] | None) -> Any:
        chosen = [{**model, "sources": ["test"]} for model in models]
        teacher = {"source": "online", "models": chosen, "worker": worker}
        rows = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3, "init": "student"}
        return world.config(
            name,
            losses={"kl_weight": 0.7, "ce_weight": 0.3, "divergence": "jsd"},
            train={"distillation": {"teacher": teacher, **rows}},
        )

    here, there = online("here", None), online("there", {"num_cpus": 1})
    world.train(here)
    world.train(there)
    assert world.weights(there) == world.weights(here)
    assert any(line["time/teacher"] > 0 for line in world.metrics(there) if "time/teacher" in line)
    local, remote = (assemble(world.job(config), WorkerGroup()) for config in (here, there))
    rows = local.planner.plan(0, 0).micro_batches[0]
    batch = collate(local.data.train, rows, local.state.student.pad_id, CPU)
    ids_NK = torch.arange(5).expand(batch.num_tokens, 5)
    first, second = (run.source._panel.at_best(batch, ids_NK, 200) for run in (local, remote))
    for name in ("ids_NK", "logprobs_NK", "tail_logprob_N"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    foreign = replace(batch, row_sources=("elsewhere",) * len(batch.row_sources))
    head = remote.state.student.head()
    with pytest.raises(ConfigError, match="no online teacher is for rows of the source 'elsewhere'"):
        remote.source.signals(foreign, torch.zeros(0), head)
    ray.kill(remote.source._panel._actor)
    with pytest.raises(EnvironmentFault, match="the teachers' process died"):
        remote.source.signals(batch, torch.zeros(0), head)
    remote.source.close()


@pytest.mark.ray
def test_what_the_student_writes_is_judged_beside_it_as_in_its_process(world: Any, ray_here: None) -> None:
    """On-policy, whole distributions and best tokens, micro-batches in flight: no bit is another."""
    judge = world.config("judge", run={"seed": 5}, training={"steps": 1})
    world.train(judge, "sft")

    def written(name: str, worker: dict[str, int] | None, k: int | None) -> Any:
        teacher = {
            "source": "on_policy",
            "models": [{"name": str(world.paths(judge).model("sft"))}],
            "num_logprobs": k,
            "worker": worker,
            "rollouts": {"max_new_tokens": 6, "share": 0.7, "sync_every": 2},
        }
        rows = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
        return world.config(
            name,
            losses={"kl_weight": 1.0, "ce_weight": 0.0, "divergence": "reverse_kl"},
            train={"distillation": {"teacher": teacher, **rows}},
            training={"steps": 4},
        )

    for k in (None, 8):
        here, there = written(f"here{k}", None, k), written(f"there{k}", {"num_cpus": 1}, k)
        world.train(here)
        world.train(there)
        assert world.weights(there) == world.weights(here)
        share = [line["rollout/share"] for line in world.metrics(there) if "rollout/share" in line]
        assert all(0.0 < value < 1.0 for value in share)


@pytest.mark.ray
@pytest.mark.vllm
def test_two_workers_learn_from_what_an_engine_beside_each_writes(world: Any, idle_ray: None) -> None:
    """Only the best token is drawn, so vLLM writes what transformers does; judges beside the workers, too."""
    pytest.importorskip("vllm")
    # Heads of 32, which vLLM's attention on CPUs wants at least, and weights that make no close calls.
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5}
    judge = world.config("judge", student=shape, run={"seed": 5}, training={"steps": 1})
    world.train(judge, "sft")

    def written(name: str, engine: dict[str, Any], worker: dict[str, int] | None, **training: Any) -> Any:
        rollouts = {"max_new_tokens": 6, "top_p": 1e-6, "sync_every": 2, "batch_size": 8, **engine}
        models = [{"name": str(world.paths(judge).model("sft"))}]
        teacher: dict[str, Any] = {"source": "on_policy", "models": models, "num_logprobs": 8}
        teacher |= {"worker": worker, "rollouts": rollouts}
        rows = 8 // training.get("num_workers", 1)
        own = {"teacher": teacher, "per_device_train_batch_size": rows, "learning_rate": 1e-4}
        return world.config(
            name,
            student=shape,
            losses={"kl_weight": 1.0, "ce_weight": 0.0, "divergence": "jsd"},
            train={"distillation": own},
            training={"steps": 3, "log_every": 1, **training},
        )

    one = written("one", {"engine": "transformers"}, None)
    two = written("two", {"engine": "vllm", "memory_gib": 0.05}, {"num_cpus": 1}, num_workers=2)
    world.train(one)
    world.list_requests(world.paths(two))
    assert run_training(two, world.paths(two), "distill")["counts"]["steps"] == 3
    lines = [[line for line in world.metrics(config) if "train/loss" in line] for config in (one, two)]
    for ours, theirs in zip(*lines, strict=True):
        for name in ("rollout/tokens", "rollout/ended", "rollout/staleness"):
            assert ours[name] == theirs[name], name
        assert theirs["train/loss"] == pytest.approx(ours["train/loss"], rel=1e-3)
    assert not world.paths(two).rollout_weights("distill", 0).exists()


@pytest.mark.parametrize(
    ("cause", "expected", "text"),
    [
        (DataError("row 7 is wrong"), DataError, "row 7 is wrong"),
        (MemoryError("out of memory"), EnvironmentFault, "per_device_train_batch_size"),
    ],
)
def test_a_workers_error_becomes_one_of_ours(cause: Exception, expected: type, text: str) -> None:
    """F26."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    sent = pickle.loads(pickle.dumps(UserExceptionWithTraceback(cause, "Traceback ...")))
    error = translate_failure(WorkerGroupError("failed", {1: sent}), Path("checkpoints"))
    assert type(error) is expected and text in str(error) and "Traceback" not in str(error)


def test_a_worker_without_memory_is_explained_and_its_checkpoints_are_whole(
    world: Any, tmp_path: Path
) -> None:
    """F26: a limit on the address space; the loop's own allocation fails, at the step after a checkpoint."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    large = {"intermediate_size": 40_000, "num_hidden_layers": 1}
    config = world.config(student=large, training={"steps": 3, "save_every": 1})
    directory = world.paths(config).checkpoints("distill")
    with pytest.raises(StopError):
        train_worker(world.job(config), WorkerGroup(), StopAtOnce())
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert "memory" in child.stdout.lower(), child.stdout
    error = translate_failure(WorkerGroupError("failed", {0: RuntimeError(child.stdout)}), directory)
    assert error.exit_code == 4 and "can't allocate memory" in error.what
    assert str(directory) == error.problems[0].where and "distill" in error.problems[0].where
    assert "lower per_device_train_batch_size" in error.problems[0].fix
    assert [step_of(path) for path in list_checkpoints(directory)] == [1]
    assert all(verify_checkpoint(path) for path in list_checkpoints(directory))
    assert not world.paths(config).model("distill").exists()
    world.train(config)
    assert latest_valid(directory).step == 3


class StopError(Exception):
    """Ends a run from within."""


class StopAtOnce:
    """A reporter that ends the run at its first save."""

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        raise StopError


def test_more_workers_than_a_local_ray_has_room_for_are_refused(world: Any) -> None:
    """I33."""
    config = world.config(training={"num_workers": 8, "cpus_per_worker": 2})
    with pytest.raises(EnvironmentFault, match="need 16 CPU, and Ray has 4"):
        require_resources(config, {"CPU": 2.0}, {"CPU": 4.0})
    with pytest.raises(EnvironmentFault, match="a process for their teachers each, need 5 CPU"):
        require_resources(world.config(), {"CPU": 2.0}, {"CPU": 4.0}, {"CPU": 3.0})
    joined = world.config(training={"num_workers": 8}, cluster={"address": "host:6379"})
    require_resources(joined, {"CPU": 2.0}, {"CPU": 4.0})


def test_what_this_machine_cannot_do_is_refused(empty_world: Any) -> None:
    """I34."""
    half = resolve_settings(empty_world.config(train={"sft": {"fp16": True}}), "sft")
    with pytest.raises(EnvironmentFault, match="float16"):
        choose_precision(half, "cpu")
    assert choose_precision(replace(half, precision="bfloat16"), "cpu") == "bfloat16"
    assert choose_precision(replace(half, precision="float32", prefers_bfloat16=True), "cpu") == "float32"


def test_threads_are_the_configs_or_a_fair_share(empty_world: Any) -> None:
    assert choose_num_threads(empty_world.config(training={"cpus_per_worker": 3}), 2) == 3
    shared = empty_world.config(training={"cpus_per_worker": None})
    assert choose_num_threads(shared, 10_000) == 1
