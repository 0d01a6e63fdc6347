"""A tiny teacher on disk, its configuration, and a run directory that has passed prepare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raystill.bench.random_teacher import RandomTeacherShape, build_random_teacher
from raystill.config.schema import Config
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.paths import RunPaths
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

TINY = RandomTeacherShape(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=128,
)


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with 0.1 M parameters, a context of 128 and 300 tokens."""
    return build_random_teacher(tmp_path_factory.mktemp("teacher") / "tiny", TINY)


@pytest.fixture
def make_config(teacher_dir: Path, tmp_path: Path) -> Callable[..., Config]:
    """A configuration for the tiny teacher; keyword arguments go into `teacher`, dotted ones by nesting."""

    def make(engine: str = "fake", model: Path | None = None, **teacher: Any) -> Config:
        pipeline = {"max_new_tokens": 16, "temperature": 0.8, **teacher.pop("pipeline", {})}
        opened = {"model": {"name": str(model or teacher_dir), **teacher.pop("model_keys", {})}}
        opened |= {"pipeline": pipeline, "tokenizer": teacher.pop("tokenizer", {})}
        return Config.model_validate(
            {
                "run": {"dir": str(tmp_path / "runs"), "name": "test"},
                "device": teacher.pop("device", {}),
                "teacher": {
                    "engine": engine,
                    "open": opened,
                    "signals": {"num_logprobs": 8, **teacher.pop("signals", {})},
                    "vllm": {"kv_cache_gib": 0.25, "max_num_seqs": 32},
                    "store": {"num_partitions": 4, "rows_per_part": 32},
                    **teacher,
                },
            }
        )

    return make


@pytest.fixture
def save_prompt_table() -> Callable[[Config, int], RunPaths]:
    """Write a prompt table and prepare's manifest; every tenth prompt is held out."""

    def save(config: Config, num_prompts: int, long_every: int = 0) -> RunPaths:
        paths = RunPaths.from_config(config)
        prompts = []
        for index in range(num_prompts):
            words = "the worker writes a letter " * (40 if long_every and index % long_every == 0 else 1)
            content = f"{words} number {index}"
            split = "eval" if index % 10 == 0 else "train"
            messages = [{"role": "user", "content": content}]
            prompts.append(Prompt(f"p{index:05d}", "test", split, messages, "text", None, 12))  # type: ignore[arg-type]
        save_prompts(paths.prompt_table, prompts)
        manifest = Manifest(stage="prepare", fingerprint=f"test-{num_prompts}", config={}, inputs={})
        save_manifest(paths.stage_dir("prepare"), manifest)
        return paths

    return save


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for a module's tests, by the product's own rules."""
    from raystill.cluster.ray_session import ray_session

    with ray_session(Config()):
        yield
