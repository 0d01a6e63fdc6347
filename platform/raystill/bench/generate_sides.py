"""One side of the generate benchmark in its own process: `ours|flat|dicts|ray WIDTH TEACHER PROMPTS PLACE`.

Prints one JSON object: tokens_per_s.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from raystill.config.schema import Config
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

_MAX_NEW_TOKENS = 64
# Ray's defaults: rows of a batch, and batches that an engine has at a time.
_RAY_BATCH, _RAY_BATCHES = 32, 8
_RAY_CPUS = 8
_EXECUTOR = "distributed_executor_backend"


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


def _messages(index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {index * 37 % 911} + {index * 13 % 577}? Show steps."}]


def _prompts(num_prompts: int) -> list[Prompt]:
    return [
        Prompt(
            id=f"p{index}",
            source="bench",
            split="train",
            messages=_messages(index),
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


def _measure_vllm(teacher_dir: Path, num_prompts: int, place: Path, width: int, *, is_flat: bool) -> float:
    from vllm import LLM, SamplingParams

    teacher, arguments = _engine_arguments(teacher_dir, place, width)
    engine = LLM(**arguments)
    prompts: list[Any] = [
        {"prompt_token_ids": teacher.chat.render_prompt_ids(prompt.messages)}
        for prompt in _prompts(num_prompts)
    ]
    params = [
        SamplingParams(
            **_sampling(index, teacher.stop_token_ids, width), flat_logprobs=is_flat, detokenize=False
        )
        for index in range(num_prompts)
    ]
    started = time.monotonic()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.monotonic() - started)


def _measure_ray(teacher_dir: Path, num_prompts: int, place: Path, width: int) -> float:
    import ray
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    teacher, arguments = _engine_arguments(teacher_dir, place, width)
    stops = teacher.stop_token_ids
    # A logical CPU for each of its stages, or they wait for one another for ever.
    ray.init(num_cpus=_RAY_CPUS, include_dashboard=False, logging_level="ERROR")
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=arguments.pop("model"),
            engine_kwargs={**arguments, "skip_tokenizer_init": False},
            batch_size=_RAY_BATCH,
            max_concurrent_batches=_RAY_BATCHES,
            concurrency=1,
            log_engine_metrics=False,
            placement_group_config={"bundles": [{"CPU": 1}]},
        ),
        preprocess=lambda row: {
            "messages": _messages(int(row["id"])),
            "sampling_params": _sampling(int(row["id"]), stops, width),
        },
        postprocess=lambda row: {
            "num_tokens": row["num_generated_tokens"],
            "completion": row["generated_text"],
            "completion_token_ids": row["generated_tokens"],
            "logprobs": row.get("logprobs"),
            "finished": time.time(),
        },
    )
    prompts = ray.data.range(num_prompts, override_num_blocks=max(1, num_prompts // _RAY_BATCH))
    rows = processor(prompts).materialize().select_columns(["num_tokens", "finished"]).take_all()
    ray.shutdown()
    return steady_rate([(row["finished"], row["num_tokens"]) for row in rows], _RAY_BATCH * _RAY_BATCHES)


def steady_rate(arrivals: list[tuple[float, int]], in_flight: int) -> float:
    """Tokens per second of (time, tokens) rows after the first `in_flight` of them, or after the first half.

    The engine's start lies before; what it had begun by then counts in its favour.
    """
    arrivals = sorted(arrivals)
    first = min(in_flight, len(arrivals) // 2)
    start, end = arrivals[first - 1][0], arrivals[-1][0]
    return sum(tokens for _, tokens in arrivals[first:]) / max(end - start, 1e-9)


def _engine_arguments(teacher_dir: Path, place: Path, width: int) -> tuple[Any, dict[str, Any]]:
    """The teacher, and the arguments that our stage would start its engine with, but for the number of its
    processes: peers have as many as vLLM takes by itself."""
    from raystill.teacher.identify import identify_teacher
    from raystill.teacher.vllm_engine import vllm_settings

    teacher = identify_teacher(_config(teacher_dir, width, place))
    settings = vllm_settings(
        teacher.config, teacher.facts, teacher.stop_token_ids, num_logprobs=width, scoring=False
    )
    shared = {name: value for name, value in settings.arguments.items() if name != _EXECUTOR}
    return teacher, shared


def _sampling(index: int, stops: tuple[int, ...], width: int) -> dict[str, Any]:
    return {
        "temperature": 1.0,
        "seed": index,
        "max_tokens": _MAX_NEW_TOKENS,
        "stop_token_ids": list(stops),
        "logprobs": width or None,
    }


def main() -> None:
    """See the module."""
    side, width, teacher, num_prompts, place = sys.argv[1:]
    arguments = Path(teacher), int(num_prompts), Path(place), int(width)
    if side == "ours":
        rate = _measure_ours(*arguments)
    elif side == "ray":
        rate = _measure_ray(*arguments)
    else:
        rate = _measure_vllm(*arguments, is_flat=side == "flat")
    sys.stdout.write(json.dumps({"tokens_per_s": rate}) + "\n")


if __name__ == "__main__":
    main()
