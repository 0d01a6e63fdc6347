"""Stores of answers from elsewhere, counted before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raystill.cluster.stored_answers import count_answers
from raystill.cluster.workload import estimate_workload
from raystill.config.schema import Config
from raystill.store.importers.formats import ImportRequest, import_files

ROWS = 40
ANSWER = "a completion of some length, as teachers write them. " * 8


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {index}"},
                {"role": "assistant", "content": f"{ANSWER} {index:02}"},
            ]
        }
        for index in range(ROWS)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    request = ImportRequest("messages", (path,), tmp_path / "imported", "someone", num_partitions=1)
    import_files(request)
    return tmp_path / "imported"


def test_text_has_the_tokens_that_its_size_says(store: Path) -> None:
    found = count_answers(store)
    assert found is not None
    assert (found.rows, found.is_guessed, found.teacher) == (ROWS, True, "someone")
    assert found.completion_tokens == pytest.approx(ROWS * len(ANSWER) / 4, rel=0.3)
    assert found.prompt_tokens is not None and found.prompt_tokens > ROWS


def test_a_run_over_it_is_planned_before_prepare(store: Path) -> None:
    config = Config.model_validate(
        {"teacher": {"base": {"from_store": str(store)}}, "prompts": {"eval_size": 8}}
    )
    found = estimate_workload(config, None, None)
    assert (found.rows, found.requests, found.train_rows) == (ROWS, ROWS, ROWS - 8)
    assert found.completion_tokens is not None
    assert any("someone" in note for note in found.notes)
    assert any("bytes / 4" in note for note in found.notes)


def test_no_store_yet(tmp_path: Path) -> None:
    assert count_answers(tmp_path) is None
    config = Config.model_validate({"teacher": {"base": {"from_store": str(tmp_path / "none")}}})
    assert estimate_workload(config, None, None).rows is None
