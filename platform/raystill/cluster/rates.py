"""How fast stages were here: useful operations per second, by stage, machine and model size.

Kept beside the runs as `rates.json`, so that a plan after the first run rests on what was measured.
"""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import cast

from raystill.cluster.model_size import count_local_parameters
from raystill.cluster.workload import estimate_workload
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


def rate_key(stage: StageName, machine: str, parameters: int) -> str:
    """One entry per stage, machine and magnitude of the model (a factor of two)."""
    return f"{stage}/{machine}/2^{round(math.log2(max(1, parameters)))}"


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
    """Take in how fast a stage was that has just done all of its work, and how long answers were."""
    found: dict[str, float] = {}
    prepared, generated = (load_manifest(paths.stage_dir(name)) for name in ("prepare", "generate"))
    measured = measure(config, manifest, estimate_workload(config, prepared, generated).row_tokens)
    if measured is not None:
        operations, parameters, seconds = measured
        machine = machine_name(device, config.cluster.num_cpus or os.cpu_count() or 1)
        found[rate_key(cast(StageName, manifest.stage), machine, parameters)] = operations / seconds
    counts = manifest.counts
    if manifest.stage == "generate" and counts.get("done") and counts.get("completion_tokens"):
        found[answer_key(config)] = counts["completion_tokens"] / counts["done"]
    if not found:
        return
    rates = load_rates(paths)
    for key, new in found.items():
        rates[key] = new if key not in rates else (1 - _SHARE_OF_NEW) * rates[key] + _SHARE_OF_NEW * new
    write_json(rates_path(paths), {key: round(value, 2) for key, value in rates.items()})


def measure(config: Config, manifest: Manifest, row_tokens: float | None) -> tuple[float, int, float] | None:
    """Useful operations, parameters and seconds of a finished stage, counted as plans count them.

    Training: 6 per parameter and token of the rows (`row_tokens` each); generation: 2 per teacher parameter
    and completion token. The seconds are those of the whole stage, start-up included, so small stages look
    slow and plans of them are right.
    """
    counts, seconds = manifest.counts, manifest.seconds
    if seconds < _SHORTEST_SECONDS:
        return None
    if manifest.stage in ("sft", "distill"):
        section = config.train.sft if manifest.stage == "sft" else config.train.distillation
        if section is None or row_tokens is None:
            return None
        parameters = counts.get("parameters", 0)
        rows = section.per_device_train_batch_size * section.gradient_accumulation_steps
        rows *= counts.get("steps", 0) * worker_range(config.training)[1]
        operations = 6.0 * parameters * rows * row_tokens
    elif manifest.stage == "generate" and config.teacher.open is not None:
        tokens = counts.get("completion_tokens", 0) if not counts.get("reused") else 0
        parameters = count_local_parameters(Path(config.teacher.open.model.name).expanduser()) or 0
        operations = 2.0 * parameters * tokens
    else:
        return None
    return (operations, parameters, seconds) if operations > 0 else None
