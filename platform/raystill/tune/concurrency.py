"""How many trials run at once: what the machine or the cluster has, divided by what one trial takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raystill.config.tune import TuneSection
from raystill.errors import EnvironmentFault


@dataclass(frozen=True)
class Concurrency:
    """`trials` at once, because of `limit` ("CPU", "GPU", "max_concurrent" or "trials")."""

    trials: int
    limit: str


def worker_resources(tune: TuneSection, device: str) -> dict[str, float]:
    """What Ray reserves for each worker of a trial."""
    gpus = tune.resources.gpus
    if gpus is None:
        gpus = 1.0 if device == "cuda" else 0.0
    return {"CPU": float(tune.resources.cpus)} | ({"GPU": gpus} if gpus else {})


def choose_concurrency(
    tune: TuneSection, wanted: Mapping[str, float], available: Mapping[str, float], trials: int
) -> Concurrency:
    """Trials at once. Raises EnvironmentFault where not even one fits.

    `wanted` is what all workers of a trial take together, nothing where nodes come as trials ask for them.
    `available` counts real cores: a local Ray offers more CPUs than there are.
    """
    limits = {}
    for name, amount in wanted.items():
        fitting = math.floor(available.get(name, 0.0) / amount + 1e-9)
        if fitting < 1:
            raise EnvironmentFault(
                f"a trial takes {amount:g} {name}, and there are {available.get(name, 0.0):g}",
                where="tune.resources",
                fix="lower tune.resources, or use a larger machine",
            )
        limits[name] = fitting
    if tune.max_concurrent is not None:
        limits["max_concurrent"] = tune.max_concurrent
    limits["trials"] = max(1, trials)
    limit = min(limits, key=lambda name: limits[name])
    return Concurrency(limits[limit], limit)
