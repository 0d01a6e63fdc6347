"""The demo's tasks: reproducible, verifiable, and never shared between training and evaluation."""

import itertools
import json
import random
from pathlib import Path

import pytest

from raystill.demo.pretrain_teacher import EVALUATION_SEED, TRAINING_SEED
from raystill.demo.tasks import (
    PROMPT_COUNT,
    PROMPTS_PATH,
    TOOL_SCHEMA_PATH,
    TOOLS,
    Task,
    draw_exact,
    draw_tool_call,
    is_correct,
    iter_prompt_rows,
    iter_tasks,
    slip_answer,
    write_prompts,
    write_tool_schemas,
)

ROWS = list(iter_prompt_rows())
PROMPTS = frozenset(row["messages"][0]["content"] for row in ROWS)


def _take(seed: int, count: int) -> list[Task]:
    return list(itertools.islice(iter_tasks(seed), count))


def test_the_same_seed_gives_the_same_tasks() -> None:
    assert _take(5, 200) == _take(5, 200)
    assert _take(5, 200) != _take(6, 200)


def test_regenerating_gives_the_committed_bytes(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    write_tool_schemas(tmp_path / "tool_schema.json")
    assert (tmp_path / "prompts.jsonl").read_bytes() == PROMPTS_PATH.read_bytes()
    assert (tmp_path / "tool_schema.json").read_bytes() == TOOL_SCHEMA_PATH.read_bytes()
    assert PROMPTS_PATH.stat().st_size <= 1_500_000


def test_ids_and_prompts_are_unique_and_both_kinds_are_common() -> None:
    assert len(ROWS) == PROMPT_COUNT
    assert len({row["id"] for row in ROWS}) == PROMPT_COUNT
    assert len(PROMPTS) == PROMPT_COUNT
    exact = sum(row["task"] == "exact" for row in ROWS) / PROMPT_COUNT
    assert 0.3 < exact < 0.5


def test_rows_have_the_documented_shape() -> None:
    for row in ROWS:
        assert set(row) == {"id", "messages", "reference", "task"}
        assert [message["role"] for message in row["messages"]] == ["user"]
        assert row["task"] in ("tool_call", "exact")


def test_a_tool_call_copies_every_argument_from_its_prompt() -> None:
    rng = random.Random(1)
    for _ in range(500):
        task = draw_tool_call(rng)
        call = json.loads(task.reference)
        assert list(call["arguments"]) == list(TOOLS[call["name"]].arguments)
        for value in call["arguments"].values():
            assert str(value) in task.prompt


def test_every_step_of_an_exact_answer_holds_and_follows_the_one_before() -> None:
    rng = random.Random(2)
    for _ in range(500):
        task = draw_exact(rng)
        total: int | None = None
        for step in task.reference.split(", "):
            left, operator, right, equals, result = step.split()
            assert equals == "="
            assert total is None or int(left) == total
            total = int(left) + int(right) if operator == "+" else int(left) - int(right)
            assert total == int(result) >= 0


def test_excluded_prompts_never_reach_the_teacher() -> None:
    for seed in (TRAINING_SEED, EVALUATION_SEED):
        drawn = {task.prompt for task in itertools.islice(iter_tasks(seed, PROMPTS), 5_000)}
        assert not drawn & PROMPTS
        # The exclusion does real work: the streams would meet without it.
        assert {task.prompt for task in _take(seed, 5_000)} & PROMPTS


def test_references_are_correct_and_slips_are_not() -> None:
    rng = random.Random(3)
    slipped = 0
    for task in _take(4, 500):
        assert is_correct(task.kind, task.reference, task.reference)
        assert slip_answer(task, rng, 0.0) == task.reference
        answer = slip_answer(task, rng, 0.3)
        assert is_correct(task.kind, task.reference, answer) == (answer == task.reference)
        slipped += answer != task.reference
    assert 150 < slipped < 450


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ('{"name": "set_timer", "arguments": {"minutes": 5}}', True),
        ('{ "arguments": {"minutes": 5}, "name": "set_timer" }\n', True),
        ('{"name": "set_timer", "arguments": {"minutes": 50}}', False),
        ('{"name": "get_weather", "arguments": {"minutes": 5}}', False),
        ('{"name": "set_timer", "arguments": {"minutes": 5}', False),
        ("", False),
    ],
)
def test_a_tool_call_is_judged_as_json(completion: str, correct: bool) -> None:
    reference = '{"name": "set_timer", "arguments": {"minutes": 5}}'
    assert is_correct("tool_call", reference, completion) is correct


def test_an_exact_answer_is_judged_whole() -> None:
    assert is_correct("exact", "3 + 8 = 11, 11 - 2 = 9", " 3 + 8 = 11, 11 - 2 = 9\n")
    assert not is_correct("exact", "3 + 8 = 11, 11 - 2 = 9", "9")
