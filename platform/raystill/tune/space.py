"""Drawing values: what a trial's parameters are, from the space, the seed and the trial's number alone."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from raystill.config.tune import Distribution, TuneSection
from raystill.config.tune_contradictions import given_values

Params = dict[str, Any]


def plan_params(tune: TuneSection) -> list[Params]:
    """The parameters of every trial of a random or grid search, in order; the same for the same section.

    Grids are crossed; each combination gets `num_samples` draws of what is drawn, or is tried once where
    nothing is.
    """
    is_grid = tune.search == "grid"
    crossed, drawn = {}, {}
    for path, distribution in tune.space.items():
        kind, values = given_values(distribution)
        if kind == "grid" or is_grid:
            crossed[path] = values
        else:
            drawn[path] = distribution
    combinations = [
        dict(zip(crossed, values, strict=True)) for values in itertools.product(*crossed.values())
    ]
    samples = tune.num_samples if drawn else 1
    planned: list[Params] = []
    for combination in combinations:
        for _ in range(samples):
            planned.append(combination | draw_all(drawn, f"{tune.seed}:{len(planned)}"))
    return planned


def draw_all(space: Mapping[str, Distribution], seed: str) -> Params:
    """One value for every key. A key's draw doesn't depend on which other keys there are."""
    return {path: draw(distribution, random.Random(f"{seed}:{path}")) for path, distribution in space.items()}


def draw(distribution: Distribution, generator: random.Random) -> Any:
    """One value of a distribution; a number of `loguniform` has a uniform logarithm."""
    kind, values = given_values(distribution)
    if kind == "uniform":
        return generator.uniform(*values)
    if kind == "loguniform":
        return math.exp(generator.uniform(math.log(values[0]), math.log(values[1])))
    if kind == "randint":
        return generator.randint(*values)
    return values[generator.randrange(len(values))]


def clamp(distribution: Distribution, value: Any) -> Any:
    """`value` moved into a range that it left; of a choice it is one already."""
    kind, values = given_values(distribution)
    if kind not in ("uniform", "loguniform", "randint"):
        return value
    inside = min(max(value, values[0]), values[1])
    return round(inside) if kind == "randint" else float(inside)
