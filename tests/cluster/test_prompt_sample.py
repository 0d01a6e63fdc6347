"""How long prompts and answers are, from a source's first rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raystill.cluster.prompt_sample import sample_prompts
from raystill.cluster.workload import estimate_workload
from raystill.config.schema import Config


def config(path: Path, **more: Any) -> Config:
    teacher = {"open": {"model": {"name": "t"}, "pipeline": {"max_new_tokens": 40}}}
    return Config.model_validate({"prompts": {"sources": [{"path": str(path), **more}]}, "teacher": teacher})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_only_what_the_models_read_counts(tmp_path: Path) -> None:
    row = {"id": "x" * 900, "prompt": "a" * 40, "reference": "b" * 80, "topic": "y" * 900}
    path = write(tmp_path / "prompts.jsonl", [row] * 300)
    found = sample_prompts(config(path))
    assert found is not None and 10 <= found.prompt_tokens <= 20 and 20 <= (found.answer_tokens or 0) <= 22
    work = estimate_workload(config(path), None, None)
    assert work.rows == 300 and work.prompt_tokens == round(300 * found.prompt_tokens)
    assert work.completion_tokens == round(300 * (found.answer_tokens or 0))
    assert any("references" in note for note in work.notes)


def test_references_longer_than_answers_may_be_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", [{"prompt": "a", "reference": "b" * 4000}] * 3)
    assert estimate_workload(config(path), None, None).completion_tokens == 3 * 40


def test_prompts_that_will_be_dropped_are_no_work(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * 40, "reference": "b" * 80}] * 3 + [{"prompt": "a" * 4000}]
    path = write(tmp_path / "prompts.jsonl", rows * 10)
    plain = config(path).model_dump(mode="json")
    plain["teacher"]["base"]["prompt_length"] = 100
    assert estimate_workload(Config.model_validate(plain), None, None).rows == 40
    plain["prompts"]["over_length"] = "drop"
    work = estimate_workload(Config.model_validate(plain), None, None)
    assert work.rows == 30 and work.prompt_tokens is not None and work.prompt_tokens < 30 * 30
    assert any("25% of the prompts are dropped" in note for note in work.notes)


@pytest.mark.parametrize("content", ["", "not json\n", '{"nothing": 1}\n'])
def test_what_cannot_be_read_is_left_to_the_stage(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content, encoding="utf-8")
    assert sample_prompts(config(path)) is None
    assert sample_prompts(config(tmp_path / "missing.jsonl")) is None
