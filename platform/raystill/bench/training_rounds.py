"""Interleaved rounds of training sides, each in a process of its own, and the rows of their medians."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from raystill.bench.own_process import run_in_own_process
from raystill.bench.result import BenchRow
from raystill.bench.training_sides import Spec
from raystill.errors import EnvironmentFault

Found = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """Ours against the fastest side whose name begins with `peer`: at least `speed` times as fast, `memory`
    times smaller."""

    name: str
    peer: str
    speed: float
    memory: float | None = None


def measure_sides(spec: Spec, sides: Sequence[str], rounds: int) -> dict[str, Found]:
    """Medians of every side. Raises EnvironmentFault where TRL is not installed or a side fails."""
    if find_spec("trl") is None:
        raise EnvironmentFault(
            "the benchmark's peer, trl, is not installed", fix="pip install 'raystill[bench]'"
        )
    threads = str(spec.threads)
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    found: dict[str, list[Found]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            text = json.dumps(vars(replace(spec, side=side)))
            environment = {**quiet, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            found[side].append(run_in_own_process("raystill.bench.training_sides", [text], environment))
    return {side: _medians(values) for side, values in found.items()}


def goal_rows(case: str, medians: dict[str, Found], goals: Sequence[Goal]) -> list[BenchRow]:
    """Our fastest setting against each peer's, of those that were measured; memory where a goal has it."""
    mine = _fastest(medians, "ours")
    if mine is None:
        raise ValueError("no side is ours")
    ours, rows = medians[mine], []
    for goal in goals:
        best = _fastest(medians, goal.peer)
        if best is None:
            continue
        peer = medians[best]
        ratio = ours["tokens_per_s"] / peer["tokens_per_s"]
        rows.append(
            BenchRow(
                f"{case}, {mine}",
                "tokens/s",
                ours["tokens_per_s"],
                peer["tokens_per_s"],
                f"{goal.name} ({best})",
                ratio,
                f">= {goal.speed:g}",
                ratio >= goal.speed,
            )
        )
        if goal.memory is not None:
            less = peer["peak_mb"] / ours["peak_mb"]
            rows.append(
                BenchRow(
                    f"{case}, {mine}",
                    "peak MB",
                    ours["peak_mb"],
                    peer["peak_mb"],
                    f"{goal.name} ({best})",
                    less,
                    f">= {goal.memory:g}",
                    less >= goal.memory,
                )
            )
    return rows


def num_threads() -> int:
    """CPU threads of every side: all cores."""
    return os.cpu_count() or 1


def _fastest(medians: dict[str, Found], name: str) -> str | None:
    sides = [side for side in medians if side.startswith(f"{name}-")]
    return max(sides, key=lambda side: medians[side]["tokens_per_s"], default=None)


def _medians(values: list[Found]) -> Found:
    return {name: statistics.median(value[name] for value in values) for name in values[0]}
