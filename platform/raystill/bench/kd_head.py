"""The KD head alone: hidden states to loss and gradients, forward KL, half of the rows masked.

Ours twice: from a stored top 64 (what the product does: no teacher in memory, nothing computed for it), and
from a teacher's hidden states and head, the very function that the peers compute. Peers: TRL's chunked
divergence and Liger's chunked loss, both in PyTorch (their Triton kernels have no CPU form). Peers get all
rows and mask in their own way; ours gets the rows that carry loss. float32, both models of the same width,
gradients in hidden states and head. Time: all sides in turns in one process, medians. Memory: a process per
side.
"""

from __future__ import annotations

import statistics
from typing import Any

from raystill.bench.kd_head_sides import (
    DENSE,
    LIGER,
    OURS,
    TRL,
    Case,
    bound_mb,
    require_peers,
)
from raystill.bench.own_process import run_in_own_process
from raystill.bench.result import BenchRow, bench_result

GOALS = {TRL: 4.0, LIGER: 1.4}
ERROR_GOAL, MEMORY_GOAL = 1e-5, 1.2
_MODULE = "raystill.bench.kd_head_sides"


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure. `quick`: one small case, two rounds. Raises EnvironmentFault where a peer isn't installed."""
    require_peers()
    if quick:
        cases, rounds = [Case(256, 256, 32_000)], 2
    else:
        cases = [Case(1024, D, V) for D in (256, 1024) for V in (32_000, 151_936)]
        rounds = 5
    rows = []
    for case in cases:
        found = run_in_own_process(_MODULE, ["time", case.text, str(rounds)])
        memory = {
            side: run_in_own_process(_MODULE, ["memory", case.text, side])["growth_mb"]
            for side in (OURS, DENSE)
        }
        rows += case_rows(case, found["seconds"], found["errors"], memory)
    return bench_result("kd-head", rows)


def case_rows(
    case: Case, seconds: dict[str, list[float]], errors: dict[str, float], memory_mb: dict[str, float]
) -> list[BenchRow]:
    """The table's rows of one case: time against either peer, gradient error, memory against its bound."""
    rows = []
    milliseconds = {side: statistics.median(values) * 1e3 for side, values in seconds.items()}
    for side in (OURS, DENSE):
        for peer, goal in GOALS.items():
            ratio = milliseconds[peer] / milliseconds[side]
            rows.append(
                BenchRow(
                    f"{case.name}, {side}", "ms", milliseconds[side], milliseconds[peer], peer, ratio,
                    f">= {goal:g}", ratio >= goal,
                )
            )  # fmt: skip
        error = errors[side]
        rows.append(
            BenchRow(
                f"{case.name}, {side}", "gradient error", error, errors[TRL], TRL, None,
                f"< {ERROR_GOAL:g} of float64", error < ERROR_GOAL,
            )
        )  # fmt: skip
        bound = bound_mb(case, side)
        rows.append(
            BenchRow(
                f"{case.name}, {side}", "peak MB", memory_mb[side], bound, "chunk bound",
                bound / memory_mb[side], f"<= {MEMORY_GOAL:g} x the bound",
                memory_mb[side] <= MEMORY_GOAL * bound,
            )
        )  # fmt: skip
    return rows
