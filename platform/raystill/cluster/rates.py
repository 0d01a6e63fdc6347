"""How fast stages were here: useful operations per second, by stage, machine and model size.

Kept beside the runs as `rates.json`, so that a plan after the first run rests on what was measured.
"""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

from raystill.cluster.model_size import count_local_parameters
from raystill.config.schema import Config
from raystill.run.manifest import Manifest
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


def remember_rate(config: Config, paths: RunPaths, manifest: Manifest, device: str) -> None:
    """Take in how fast a stage was that has just done its work; nothing for one that says too little."""
    measured = measure(config, manifest)
    if measured is None:
        return
    operations, parameters, seconds = measured
    stage: Any = manifest.stage
    key = rate_key(stage, machine_name(device, config.cluster.num_cpus or os.cpu_count() or 1), parameters)
    rates = load_rates(paths)
    new = operations / seconds
    rates[key] = new if key not in rates else (1 - _SHARE_OF_NEW) * rates[key] + _SHARE_OF_NEW * new
    write_json(rates_path(paths), {key: round(value, 1) for key, value in rates.items()})


def measure(config: Config, manifest: Manifest) -> tuple[float, int, float] | None:
    """Useful operations, parameters and seconds of a finished stage.

    Training: 6 per parameter and token; generation: 2 per teacher parameter and completion token. The seconds
    are those of the whole stage, start-up included, so small stages look slow and plans of them are right.
    """
    counts, seconds = manifest.counts, manifest.seconds
    if seconds < _SHORTEST_SECONDS:
        return None
    if manifest.stage in ("sft", "distill"):
        parameters, tokens = counts.get("parameters", 0), counts.get("tokens_trained", 0)
        operations = 6.0 * parameters * tokens
    elif manifest.stage == "generate" and config.teacher.open is not None:
        tokens = counts.get("completion_tokens", 0) if not counts.get("reused") else 0
        parameters = count_local_parameters(Path(config.teacher.open.model.name).expanduser()) or 0
        operations = 2.0 * parameters * tokens
    else:
        return None
    return (operations, parameters, seconds) if operations > 0 else None
