"""How fast stages were here: operations per second by stage, machine and model size, and seconds of starting.

Kept beside the runs as `rates.json`, so that a plan after the first run rests on what was measured.
"""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from raystill.cluster.model_size import count_local_parameters
from raystill.cluster.operations import generation_operations, scoring_operations, training_operations
from raystill.cluster.workload import Workload, estimate_workload
from raystill.config.schema import Config
from raystill.config.worker_range import worker_range
from raystill.run.manifest import Manifest, load_manifest
from raystill.run.paths import RunPaths, StageName
from raystill.run.publish import write_json

_SHARE_OF_NEW = 0.5  # a rate is the mean of the old one and the new one
_SHORTEST_SECONDS = 1.0


def rates_path(paths: RunPaths) -> Path:
    """The file beside all runs of one directory."""
    return paths.root.parent / "rates.json"


def machine_name(device: str, num_cpus: int) -> str:
    """A machine as far as speed goes: device, processor architecture and cores."""
    return f"{device}-{platform.machine()}-{num_cpus if device == 'cpu' else 'gpu'}"


def startup_key(stage: StageName, machine: str) -> str:
    """The entry of a stage's seconds besides its work: engines, workers and models that load."""
    return f"startup/{stage}/{machine}"


def rate_key(stage: StageName, machine: str, parameters: int) -> str:
    """One entry per stage, machine and magnitude of the model (a factor of two)."""
    return f"rate/{stage}/{machine}/2^{round(math.log2(max(1, parameters)))}"


def load_rates(paths: RunPaths) -> dict[str, float]:
    """Remembered rates; a file that can't be read is no memory."""
    try:
        loaded = json.loads(rates_path(paths).read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in loaded.items() if float(value) > 0}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def answer_key(config: Config) -> str:
    """The entry of how many tokens a teacher's answers have."""
    teacher = config.teacher.closed or config.teacher.open
    if teacher is None:
        return "answer-tokens"
    return f"answer-tokens/{teacher.model.name}/{teacher.pipeline.max_new_tokens}"


def remember_rate(config: Config, paths: RunPaths, manifest: Manifest, device: str) -> None:
    """Take in how fast a stage was that has just done all of its work, how long it took besides, and how many
    tokens answers had."""
    found: dict[str, float] = {}
    prepared, generated = (load_manifest(paths.stage_dir(name)) for name in ("prepare", "generate"))
    measured = measure(config, manifest, estimate_workload(config, prepared, generated))
    if measured is not None:
        machine = machine_name(device, config.cluster.num_cpus or os.cpu_count() or 1)
        stage = cast(StageName, manifest.stage)
        found[rate_key(stage, machine, measured.parameters)] = measured.operations / measured.seconds
        found[startup_key(stage, machine)] = measured.startup_seconds
    counts = manifest.counts
    if manifest.stage == "generate" and counts.get("done") and counts.get("completion_tokens"):
        found[answer_key(config)] = counts["completion_tokens"] / counts["done"]
    if not found:
        return
    rates = load_rates(paths)
    for key, new in found.items():
        rates[key] = new if key not in rates else (1 - _SHARE_OF_NEW) * rates[key] + _SHARE_OF_NEW * new
    write_json(rates_path(paths), {key: round(value, 2) for key, value in rates.items()})


@dataclass(frozen=True)
class Measured:
    """A finished stage's operations, counted as plans count them, the seconds that they took, and those that
    it took besides."""

    operations: float
    parameters: int
    seconds: float
    startup_seconds: float


def measure(config: Config, manifest: Manifest, work: Workload) -> Measured | None:
    """How fast a finished stage was; None where it says too little, or was too short to say anything."""
    if manifest.stage in ("sft", "distill"):
        operations, parameters, seconds = _trained(config, manifest, work)
    elif manifest.stage in ("generate", "score") and config.teacher.open is not None:
        operations, parameters, seconds = _read_or_written(config, manifest, work)
    else:
        return None
    if operations <= 0 or seconds < _SHORTEST_SECONDS:
        return None
    return Measured(operations, parameters, seconds, max(0.01, manifest.seconds - seconds))


def _trained(config: Config, manifest: Manifest, work: Workload) -> tuple[float, int, float]:
    section = config.train.sft if manifest.stage == "sft" else config.train.distillation
    if section is None or work.row_tokens is None:
        return 0.0, 0, 0.0
    parameters = manifest.counts.get("parameters", 0)
    rows = section.per_device_train_batch_size * section.gradient_accumulation_steps
    rows *= manifest.counts.get("steps", 0) * worker_range(config.training)[1]
    seconds = float(manifest.metrics.get("loop_seconds", manifest.seconds))
    return training_operations(parameters, rows * work.row_tokens), parameters, seconds


def _read_or_written(config: Config, manifest: Manifest, work: Workload) -> tuple[float, int, float]:
    assert config.teacher.open is not None
    tokens, rate = manifest.counts.get("completion_tokens", 0), manifest.metrics.get("tokens_per_s")
    prompts = work.requested_prompt_tokens
    if manifest.counts.get("reused") or not tokens or not rate or prompts is None:
        return 0.0, 0, 0.0
    parameters = count_local_parameters(Path(config.teacher.open.model.name).expanduser()) or 0
    count = generation_operations if manifest.stage == "generate" else scoring_operations
    return count(parameters, prompts, tokens), parameters, tokens / rate
