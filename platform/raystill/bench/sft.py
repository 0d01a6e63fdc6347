"""A whole SFT step on rows of skewed lengths, against TRL's SFTTrainer and a minimal torch loop.

A Qwen2-style student of 35 M parameters with random weights, four rows of 32 to 512 tokens a step. Everyone
computes in float32 and in bfloat16 autocast, and the faster counts (which that is depends on the CPU); TRL's
default only in the latter. TRL's best setting packs rows and keeps activations; its default pads them and
computes activations twice. The minimal loop's rows are sorted by length. Only real tokens count.
"""

from __future__ import annotations

from typing import Any

from raystill.bench.result import bench_result
from raystill.bench.training_rounds import Goal, goal_rows, measure_sides, num_threads
from raystill.bench.training_sides import Spec

TRL_GOAL, MINIMAL_GOAL = 2.0, 0.95
PRECISIONS = ("fp32", "bf16")
SIDES = (
    *(f"{side}-{kind}" for kind in PRECISIONS for side in ("ours", "trl-packed", "minimal")),
    "trl-default-bf16",
)
GOALS = (
    Goal("SFTTrainer, packing", "trl-packed", TRL_GOAL),
    Goal("SFTTrainer's default", "trl-default", TRL_GOAL),
    Goal("minimal loop", "minimal", MINIMAL_GOAL),
)
_ROUNDS, _STEPS, _QUICK_STEPS = 3, 12, 2


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure all sides in turns. `quick`: one round of two steps, in float32 only."""
    spec = Spec("ours", "sft", "s35", "t60", _QUICK_STEPS if quick else _STEPS, num_threads())
    sides = SIDES[:3] if quick else SIDES
    medians = measure_sides(spec, sides, 1 if quick else _ROUNDS)
    return bench_result("sft", goal_rows("35 M, skewed lengths", medians, GOALS))
