"""A whole distillation step from stored top-64 signals, against TRL's trainers and a minimal torch loop.

Four rows of 512 tokens a step, 384 of each carry loss; forward KL. At a vocabulary of 32,000 a student of
35 M parameters (GKDTrainer and DistillationTrainer hold a teacher of 60 M); at 151,936 one of hidden size
256. Everyone computes in float32 and in bfloat16 autocast, and the faster counts (which that is depends on
the CPU); without checkpointing. The minimal loop has our loss kernel and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raystill.bench.result import bench_result
from raystill.bench.training_rounds import Goal, goal_rows, measure_sides, num_threads
from raystill.bench.training_sides import Spec

SMALL_GOALS = (
    Goal("DistillationTrainer, training part", "distillation", 4.0),
    Goal("GKDTrainer", "gkd", 2.0),
    Goal("minimal loop", "minimal", 0.95),
)
LARGE_GOALS = (Goal("GKDTrainer", "gkd", 4.0, memory=5.0), Goal("minimal loop", "minimal", 0.95))
PRECISIONS = ("fp32", "bf16")
LARGE_SIDES = tuple(f"{side}-{kind}" for kind in PRECISIONS for side in ("ours", "gkd", "minimal"))
SMALL_SIDES = (*LARGE_SIDES, *(f"distillation-{kind}" for kind in PRECISIONS))
_ROUNDS, _STEPS, _QUICK_STEPS = 3, 4, 1


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure all sides in turns. `quick`: one step at 32,000 in float32, no DistillationTrainer."""
    spec = Spec("ours", "kd", "s35", "t60", _QUICK_STEPS if quick else _STEPS, num_threads())
    small = measure_sides(spec, SMALL_SIDES[:3] if quick else SMALL_SIDES, 1 if quick else _ROUNDS)
    rows = goal_rows("vocabulary 32,000", small, SMALL_GOALS)
    if not quick:
        large = measure_sides(replace(spec, student="sV", teacher="tV"), LARGE_SIDES, _ROUNDS)
        rows += goal_rows("vocabulary 151,936", large, LARGE_GOALS)
    return bench_result("kd-step", rows)
