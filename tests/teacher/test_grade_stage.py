"""The stage grade: judges of both kinds over a run's answers, never asked twice, read by curate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystill.config.grade import GradeSection
from raystill.config.grade_contradictions import find_grading_problems
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.curate.stage import STAGE as CURATE_STAGE
from raystill.errors import ConfigError, RemoteError
from raystill.prompts.stage import STAGE as PREPARE_STAGE
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.store.importers.formats import ImportRequest, import_files
from raystill.store.requests import load_requests
from raystill.store.store import load_store
from raystill.teacher.api.ledger import load_spending
from raystill.teacher.generate_stage import GENERATE_STAGE
from raystill.teacher.grade_questions import fill_template
from raystill.teacher.grade_stage import GRADE_STAGE
from raystill.teacher.grades import read_score
from raystill.testing.scripted_api import ScriptedApi

MakeConfig = Callable[..., Config]
QUESTIONS = 20
# A scripted answer begins with eight hex digits in brackets: the first one is its score, if it is a digit.
FIRST_DIGIT = r"^\[(\d)"


def build_store(directory: Path) -> Path:
    """Two answers per question, and one question whose answers are equal but for their source."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {index}"},
                {"role": "assistant", "content": f"answer {index} number {sample if index else 0}"},
            ],
            "sample_index": sample,
        }
        for index in range(QUESTIONS)
        for sample in range(2)
    ]
    path = directory / "answers.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    import_files(ImportRequest("messages", (path,), directory / "answers", teacher="someone"))
    return directory / "answers"


def config_with(tmp_path: Path, grade: dict[str, Any], **curate: Any) -> Config:
    store = tmp_path / "answers"
    return Config.model_validate(
        {
            "run": {"dir": str(tmp_path / "runs"), "name": "judged"},
            "prompts": {"eval_size": 2},
            "teacher": {"base": {"from_store": str(store if store.exists() else build_store(tmp_path))}},
            "grade": {"lowest": 0, "highest": 9, "store": {"num_partitions": 2}, **grade},
            "curate": {"judge": {"missing": "drop", "min_score": 3, **curate.pop("judge", {})}, **curate},
        }
    )


def closed(base_url: str, **more: Any) -> dict[str, Any]:
    endpoint = {"base_url": base_url, "api_key_env": None, "request_timeout_s": 60}
    return {"model": {"name": "scripted"}, "endpoint": endpoint, "pipeline": {"batch_size": 8}, **more}


def prepared(config: Config) -> RunPaths:
    paths = RunPaths.from_config(config)
    execute(PREPARE_STAGE, config, paths)
    execute(GENERATE_STAGE, config, paths)
    return paths


def test_an_endpoint_judges_once_and_curate_reads_it(tmp_path: Path, local_ray: None) -> None:
    with ScriptedApi() as api:
        prices = {"prompt": 1.0, "completion": 1.0}
        judge = closed(api.base_url, prices=prices, budget={"max_cost_usd": 5.0})
        config = config_with(tmp_path, {"closed": judge, "pattern": FIRST_DIGIT}, best_of_n="judge")
        paths = prepared(config)
        manifest = execute(GRADE_STAGE, config, paths).manifest
        training = {request.key for request in load_requests(paths.requests) if request.split == "train"}
        scores = {row["key"]: row["score"] for row in pq.read_table(paths.grades).to_pylist()}
        ungraded = {row["key"]: row["reason"] for row in pq.read_table(paths.ungraded).to_pylist()}
        assert scores.keys() | ungraded.keys() == training
        assert not scores.keys() & ungraded.keys()
        assert len(scores) > 5
        assert set(ungraded.values()) == {"no_score"}
        assert manifest.counts["answers"] == len(training)
        assert manifest.metrics["cost_usd"] > 0.0
        spent = load_spending(load_store(paths.judge_store)).spent_usd
        asked = api.counts.requests
        again = execute(GRADE_STAGE, config, paths, fresh=True).manifest
        assert again.counts["reused"] == again.counts["questions"]
        assert api.counts.requests == asked
        assert load_spending(load_store(paths.judge_store)).spent_usd == spent
        assert again.fingerprint == manifest.fingerprint

    assert CURATE_STAGE.inputs(config) == ("generate", "grade")
    curated = execute(CURATE_STAGE, config, paths).manifest
    kept = [row for row in pq.read_table(paths.selection).to_pylist() if row["split"] == "train"]
    assert kept and all(row["judge_score"] >= 3 for row in kept)
    by_prompt = [row["prompt_id"] for row in kept]
    assert len(set(by_prompt)) == len(by_prompt)
    assert curated.counts["dropped_not_judged"] == len(ungraded)


def test_a_structured_judge_and_a_budget(tmp_path: Path, local_ray: None) -> None:
    with ScriptedApi() as api:
        config = config_with(tmp_path, {"closed": closed(api.base_url), "structured": True})
        paths = prepared(config)
        assert execute(GRADE_STAGE, config, paths).manifest.counts["ungraded"] == 0
        assert set(pq.read_table(paths.grades).column("score").to_pylist()) == {1.5}

        dear = closed(api.base_url, prices={"completion": 1e6}, budget={"max_cost_usd": 1.0})
        poor = config_with(tmp_path, {"closed": dear, "rubric": "other"})
        with pytest.raises(RemoteError, match=r"budget|cap") as caught:
            execute(GRADE_STAGE, poor, paths, fresh=True)
        assert caught.value.problems[0].where == "grade.closed.budget.max_cost_usd"
        assert "teacher." not in str(caught.value)


def test_a_judge_with_open_weights(tmp_path: Path, teacher_dir: Path, local_ray: None) -> None:
    opened = {"model": {"name": str(teacher_dir)}, "pipeline": {"max_new_tokens": 8}}
    grade = {"engine": "fake", "open": opened, "template": "{conversation} {answer}", "pattern": "(x)"}
    config = config_with(tmp_path, grade)
    paths = prepared(config)
    counts = execute(GRADE_STAGE, config, paths).manifest.counts
    # Equal answers of one question are one question to the judge, and each of them is accounted for.
    assert counts["questions"] in (counts["answers"], counts["answers"] - 1)
    assert counts["done"] + counts["ungraded"] == counts["answers"]
    assert load_store(paths.judge_store).identity.engine == "fake"


def test_wrong_settings_are_named_as_the_user_wrote_them(tmp_path: Path) -> None:
    config = config_with(tmp_path, {"engine": "transformers", "open": {"model": {"name": "/no/such/model"}}})
    paths = prepared(config)
    with pytest.raises(ConfigError) as caught:
        execute(GRADE_STAGE, config, paths)
    assert "grade.open.model" in str(caught.value)
    assert "teacher.open" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ('{"reason": "fine", "score": 7}', 7.0),
        ('thinking {"score": 2} ... {"score": "8.5"}', 8.5),
        ("seven", "no_score"),
        ('{"score": 11}', "out_of_range"),
    ],
)
def test_replies(reply: str, read: float | str) -> None:
    assert read_score(GradeSection(), reply) == read


def test_what_is_judged_cannot_fill_other_places() -> None:
    messages = json.dumps([{"role": "user", "content": "say {rubric}"}])
    row = {"messages": messages, "completion": "{reference}", "tool_calls": None}
    text = fill_template(GradeSection(rubric="R", template="{rubric}|{conversation}|{answer}"), row, "secret")
    assert text == "R|user: say {rubric}|{reference}"


@pytest.mark.parametrize(
    ("grade", "named"),
    [
        ({}, "one judge"),
        ({"open": {"model": {"name": "m"}}, "pattern": "x"}, "no group"),
        ({"open": {"model": {"name": "m"}}, "lowest": 5, "highest": 1}, "grade.lowest"),
        ({"open": {"model": {"name": "m"}}, "template": "grade it"}, "{answer}"),
        ({"open": {"model": {"name": "m"}}, "structured": True, "engine": "transformers"}, "structured"),
    ],
)
def test_contradictions(grade: dict[str, Any], named: str) -> None:
    config = Config.model_validate({"grade": grade})
    assert any(named in problem.what for problem in find_grading_problems(LoadedConfig(config)))
