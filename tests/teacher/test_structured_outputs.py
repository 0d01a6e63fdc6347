"""vLLM forces completions into one valid tool call; a dead engine process is a death, not a wrong row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from raystill.config.schema import Config
from raystill.store.selfcheck import check_signals
from raystill.teacher.build_engine import EngineBlueprint, build_engine
from raystill.teacher.engine import Generation, GenerationRequest, Sampling, TeacherEngine
from raystill.teacher.errors import EngineDiedError
from raystill.teacher.identify import identify_teacher
from raystill.teacher.orphan_guard import list_children
from raystill.text.tool_schema import parse_tool_schema

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm
TOOLS = [
    {"name": "add", "parameters": {"type": "object", "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["a"],
        "additionalProperties": False}},
    {"name": "now"},
]  # fmt: skip
SCHEMA = parse_tool_schema(TOOLS)


def request(index: int, schema: str | None, limit: int) -> GenerationRequest:
    ids = np.random.default_rng(index).integers(3, 300, 10).astype(np.int32)
    return GenerationRequest(f"row{index}", ids, Sampling(1.0, 1.0, 0, limit, schema), index, num_logprobs=4)


async def check_calls(engine: TeacherEngine, blueprint_decode: Callable[[list[int]], str]) -> None:
    forced = [request(index, SCHEMA.text, 110) for index in range(8)]
    free = [request(index, None, 20) for index in range(8, 12)]
    made: list[Generation] = await asyncio.gather(*[engine.generate(each) for each in [*forced, *free]])
    names = set()
    for generation in made[:8]:
        if generation.finish_reason == "length":
            continue
        text = blueprint_decode(generation.completion_token_ids.tolist())
        assert SCHEMA.call_problem(text) == "", text
        names.add(json.loads(text)["name"])
    assert names
    assert any(SCHEMA.call_problem(blueprint_decode(each.completion_token_ids.tolist())) for each in made[8:])
    # The stored distributions are the model's own, not the grammar's.
    check_signals([(each.key, each.signal, each.completion_token_ids) for each in made if each.signal])


async def check_death(engine: TeacherEngine, children: set[psutil.Process]) -> None:
    rows = [asyncio.create_task(engine.generate(request(index, None, 100))) for index in range(20, 28)]
    await asyncio.sleep(0.2)
    for child in children:
        child.kill()
    outcomes = await asyncio.wait_for(asyncio.gather(*rows, return_exceptions=True), timeout=120)
    assert any(isinstance(outcome, EngineDiedError) for outcome in outcomes)
    assert all(isinstance(outcome, EngineDiedError | Generation) for outcome in outcomes)


def test_calls_are_valid_and_a_killed_engine_is_noticed(
    make_config: Callable[..., Config], teacher_dir: Path
) -> None:
    """F39: with vLLM's own process."""
    teacher = identify_teacher(make_config("vllm", device={"type": "cpu"}))
    blueprint: EngineBlueprint = teacher.blueprint(num_logprobs=4, scoring=False, structured_outputs=True)

    async def check() -> None:
        before = list_children()
        engine = build_engine(blueprint)
        try:
            await check_calls(engine, lambda ids: teacher.chat.decode(ids))
            core = {child for child in list_children() - before if "EngineCore" in child.name()}
            await check_death(engine, core or list_children() - before)
        finally:
            engine.shutdown()

    asyncio.run(check())
