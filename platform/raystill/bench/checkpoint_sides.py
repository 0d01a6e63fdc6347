"""The sides of the checkpoint benchmark, each in its own process: one model, one optimizer, some saves.

`python -m raystill.bench.checkpoint_sides SIDE MEGABYTES SAVES DIRECTORY` prints one JSON object: the seconds
that each save kept training waiting, bytes written per save, and the most disk used at once.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Weights and two moments in float32.
_BYTES_PER_WEIGHT = 12
_STEPS_BETWEEN = 3
_SAMPLE_SECONDS = 0.002


def build_state(megabytes: float) -> tuple[Any, torch.optim.Optimizer]:
    """A random Llama and its AdamW after one step: together about `megabytes` (10^6 bytes)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width = 512 if megabytes >= 60 else 128
    per_layer = 4 * width**2 + 3 * width * 4 * width
    layers = max(1, round(megabytes * 1e6 / _BYTES_PER_WEIGHT / per_layer))
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, vocab_size=256,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    _train_step(model, optimizer, lambda: None)
    return model, optimizer


def _train_step(model: Any, optimizer: torch.optim.Optimizer, before_update: Callable[[], None]) -> None:
    """A forward and backward pass over 512 tokens and an update."""
    ids = torch.randint(0, 256, (4, 128))
    model(input_ids=ids, labels=ids).loss.backward()
    before_update()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class DiskPeak:
    """The most bytes that directories held at once, looked at every few milliseconds."""

    def __init__(self, *directories: Path) -> None:
        self._directories = directories
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> DiskPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.most = max(self.most, sum(_used_bytes(place) for place in self._directories))


def _used_bytes(directory: Path) -> int:
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _written_bytes() -> int:
    """Bytes that this process has handed to write calls."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("wchar"):
            return int(line.split()[1])
    raise ValueError("this system counts no written bytes")


def run_ours(megabytes: float, saves: int, directory: Path) -> dict[str, Any]:
    """Saves beside training, one recent checkpoint kept."""
    from raystill.checkpoint.background import BackgroundWriter
    from raystill.checkpoint.policy import RetentionRules
    from raystill.checkpoint.retention import apply_retention
    from raystill.checkpoint.store import save_checkpoint

    model, optimizer = build_state(megabytes)
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    tensors = {"model": {name: p.detach() for name, p in model.named_parameters()}, "optimizer": moments}
    rules = RetentionRules(total_steps=10**9, max_recent=1, min_free_gb=0.0)
    writer = BackgroundWriter()
    blocked, before = [], _written_bytes()
    with DiskPeak(directory) as peak:
        for step in range(1, saves + 1):

            def publish(copies: Any, step: int = step) -> Path:
                path = save_checkpoint(directory, step, tensors=copies, state={"step": step})
                apply_retention(directory, rules, current=step)
                return path

            started = time.perf_counter()
            writer.submit(tensors, publish)
            waited = time.perf_counter() - started

            def wait() -> None:
                nonlocal waited
                started = time.perf_counter()
                writer.wait_copied()
                waited += time.perf_counter() - started

            for _ in range(_STEPS_BETWEEN):
                _train_step(model, optimizer, wait)
            blocked.append(waited)
            # The next save is due only when this one has ended, as in training with a sensible save_every.
            writer.flush()
    written = _written_bytes() - before
    writer.close()
    return _result(blocked, written / saves, peak.most) | {"size_bytes": _used_bytes(directory)}


def run_hf(megabytes: float, saves: int, directory: Path) -> dict[str, Any]:
    """What transformers' Trainer does between two steps where a save is due, one checkpoint kept."""
    from transformers import Trainer, TrainingArguments

    model, optimizer = build_state(megabytes)
    arguments = TrainingArguments(
        output_dir=str(directory), save_total_limit=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = Trainer(model=model, args=arguments, optimizers=(optimizer, scheduler))
    blocked, before = [], _written_bytes()
    with DiskPeak(directory) as peak:
        for step in range(1, saves + 1):
            trainer.state.global_step = step
            started = time.perf_counter()
            trainer._save_checkpoint(model, trial=None)
            blocked.append(time.perf_counter() - started)
            for _ in range(_STEPS_BETWEEN):
                _train_step(model, optimizer, lambda: None)
    return _result(blocked, (_written_bytes() - before) / saves, peak.most)


def _ray_loop(settings: dict[str, Any]) -> dict[str, Any]:
    import ray.train

    model, optimizer = build_state(settings["megabytes"])
    directory = Path(settings["directory"])
    blocked, before = [], _written_bytes()
    with DiskPeak(directory) as peak:
        for step in range(1, settings["saves"] + 1):
            started = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                torch.save(model.state_dict(), Path(folder) / "model.pt")
                torch.save(optimizer.state_dict(), Path(folder) / "optimizer.pt")
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))
                blocked.append(time.perf_counter() - started)
            for _ in range(_STEPS_BETWEEN):
                _train_step(model, optimizer, lambda: None)
    return _result(blocked, (_written_bytes() - before) / settings["saves"], peak.most)


def run_ray(megabytes: float, saves: int, directory: Path) -> dict[str, Any]:
    """Ray Train's own way: files in a temporary directory, and a report that uploads them; one kept."""
    import ray
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    with _local_ray():
        trainer = DataParallelTrainer(
            _ray_loop,
            train_loop_config={"megabytes": megabytes, "saves": saves, "directory": str(directory)},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": ray_cpus()}),
            run_config=RunConfig(
                name="bench", storage_path=str(directory), checkpoint_config=CheckpointConfig(num_to_keep=1)
            ),
        )
        found: dict[str, Any] = trainer.fit().return_value
    assert not ray.is_initialized()
    return found


def ray_cpus() -> int:
    """All cores: the worker has as many threads as the other sides."""
    return os.cpu_count() or 1


@contextmanager
def _local_ray() -> Iterator[None]:
    import ray

    place = tempfile.mkdtemp(prefix="rs-", dir="/tmp")
    ray.init(
        address="local", num_cpus=ray_cpus() + 1, include_dashboard=False, log_to_driver=False,
        object_store_memory=80 * 2**20, _temp_dir=place,
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def _result(blocked: list[float], written: float, peak: int) -> dict[str, Any]:
    return {"blocked_s": statistics.median(blocked), "written_bytes": written, "peak_bytes": peak}


SIDES = {"ours": run_ours, "HF Trainer": run_hf, "Ray SYNC": run_ray}

if __name__ == "__main__":
    side, megabytes, saves, directory = sys.argv[1:]
    sys.stdout.write(json.dumps(SIDES[side](float(megabytes), int(saves), Path(directory))) + "\n")
