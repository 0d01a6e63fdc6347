"""Every key of `teacher.open` acts on an engine or is refused by it, at load; a table that is whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raystill.config.keys import all_keys
from raystill.config.load import load_config
from raystill.config.schema import Config
from raystill.errors import ConfigError
from raystill.store.requests import load_requests
from raystill.store.store import open_store
from raystill.teacher.build_engine import expected_rows_in_flight, transformers_settings
from raystill.teacher.generate_stage import build_orders
from raystill.teacher.identify import identify_teacher
from raystill.teacher.open_requests import plan_open_requests
from raystill.teacher.vllm_engine import vllm_settings
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

pytest.importorskip("vllm")
OPEN = "teacher.open"
BOTH = ("vllm", "transformers")
# The key, a value that isn't the default, and the engines that it acts on; the others refuse it.
TABLE: list[tuple[str, Any, tuple[str, ...]]] = [
    ("model.name", "<another>", BOTH),
    ("model.attn_implementation", "eager", ("transformers",)),
    ("pipeline.max_new_tokens", 7, BOTH),
    ("pipeline.temperature", 1.5, BOTH),
    ("pipeline.top_p", 0.5, BOTH),
    ("pipeline.top_k", 3, BOTH),
    ("pipeline.use_cache", False, BOTH),
    ("pipeline.do_sample", False, BOTH),
    ("pipeline.batch_size", 3, BOTH),
    ("tokenizer.additional_special_tokens", ["a"], BOTH),
    ("tokenizer.padding_side", "right", ()),
    ("tokenizer.add_generation_prompt", False, BOTH),
    ("tokenizer.padding", False, ("transformers",)),
    ("tokenizer.truncation", True, BOTH),
    ("tokenizer.skip_special_tokens", False, BOTH),
    ("tokenizer.clean_up_tokenization_spaces", True, BOTH),
]
# Keys that say where files come from or what a stage does with the store, with the tests that try them.
ELSEWHERE = {
    "model.revision": "test_model_files", "model.save_path": "test_model_files",
    "model.trust_remote_code": "test_model_files", "model.bfloat16": "test_preflight",
    "pipeline.resume": "test_generate_stage", "tokenizer.tokenize": "one value only",
    "tokenizer.use_fast": "text/test_tokenizer", "data.download.size": "test_download",
    "data.download.path": "test_download",
}  # fmt: skip


def test_the_table_is_whole() -> None:
    leaves = {
        path.removeprefix(f"{OPEN}.")
        for path, key in all_keys().items()
        if path.startswith(f"{OPEN}.") and key.section is None
    }
    assert leaves == {name for name, _, _ in TABLE} | set(ELSEWHERE)


def load(engine: str, model: Path, *overrides: str) -> Config:
    fixed = [f"teacher.engine={engine}", f"{OPEN}.model.name={model}", "run.name=keys", "device.type=cpu"]
    return load_config([], [*fixed, *overrides]).config


def observe(config: Config, directory: Path) -> str:
    """Everything that workers are told, and the requests of a short and a long prompt."""
    teacher = identify_teacher(config)
    store = open_store(directory / teacher.identity.teacher_id, teacher.identity, 2)
    texts = ["hello", "the worker writes a letter " * 60]
    prompts = [
        Prompt(f"p{i}", "s", "train", [{"role": "user", "content": text}], "text", None, 9)
        for i, text in enumerate(texts)
    ]
    save_prompts(directory / "prompts.parquet", prompts)
    plan = plan_open_requests(
        teacher, store, directory / "prompts.parquet", directory / "plan.parquet", directory / "scratch"
    )
    blueprint, order = build_orders(teacher, store, plan, directory)
    if teacher.facts.engine == "vllm":
        made: Any = vllm_settings(
            config, teacher.facts, blueprint.stop_token_ids, num_logprobs=20, scoring=False
        )
    else:
        made = transformers_settings(blueprint)
    facts = [
        asdict(made), asdict(order.work), expected_rows_in_flight(blueprint),
        sorted(vars(request).items() for request in load_requests(plan.table)),
    ]  # fmt: skip
    return json.dumps(facts, sort_keys=True, default=str)


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize(("name", "value", "acts_on"), TABLE, ids=[name for name, _, _ in TABLE])
def test_each_key_acts_or_is_refused(
    engine: str, name: str, value: Any, acts_on: tuple[str, ...], teacher_dir: Path, tmp_path: Path
) -> None:
    if value == "<another>":
        value = str(shutil.copytree(teacher_dir, tmp_path / "another"))
    override = f"{OPEN}.{name}={json.dumps(value)}"
    if engine not in acts_on:
        with pytest.raises(ConfigError) as caught:
            load(engine, teacher_dir, override)
        assert any(f"{OPEN}.{name}" in problem.where for problem in caught.value.problems)
        return
    plain = observe(load(engine, teacher_dir), tmp_path / "x")
    shutil.rmtree(tmp_path / "x")
    assert observe(load(engine, teacher_dir, override), tmp_path / "x") != plain
