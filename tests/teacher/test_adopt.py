"""A run over a store of answers from elsewhere: adopted as they are, scored here, never generated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystill.cluster.workload import estimate_workload
from raystill.config.answer_contradictions import find_answer_problems
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.prompts.stage import STAGE as PREPARE_STAGE
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.store.importers.formats import ImportRequest, import_files
from raystill.store.reader import committed_keys, load_rows
from raystill.store.requests import load_requests
from raystill.store.store import load_store
from raystill.store.verify import verify_store
from raystill.teacher.generate_stage import GENERATE_STAGE
from raystill.teacher.score_stage import SCORE_STAGE
from raystill.text.prompt_table import load_prompts

MakeConfig = Callable[..., Config]
QUESTIONS = 12


def conversation(index: int, sample: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"question {index}"}]
    return {"messages": [*turns, {"role": "assistant", "content": f"answer {index} number {sample}"}]}


def trace(index: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"trace {index}"},
            {"role": "assistant", "content": "the first turn"},
            {"role": "user", "content": "go on"},
            {"role": "assistant", "content": "the second turn"},
        ]
    }


def build_store(directory: Path, rows: list[dict[str, Any]]) -> Path:
    path = directory / "answers.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    store = directory / "imported"
    import_files(ImportRequest("messages", (path,), store, teacher="some model"))
    return store


def config_over(make_config: MakeConfig, store: Path, **base: Any) -> Config:
    """A scorer in float32 beside the store; no prompt source at all."""
    values = make_config("transformers", base={"from_store": str(store), **base}).model_dump(mode="json")
    values["teacher"]["store"] = {}
    values["teacher"]["vllm"] = {}
    values["prompts"] = {"eval_size": 3}
    return Config.model_validate(values)


def test_import_prepare_adopt_score_verify(make_config: MakeConfig, tmp_path: Path, local_ray: None) -> None:
    rows = [conversation(index, sample) for index in range(QUESTIONS) for sample in range(2)]
    store_path = build_store(tmp_path, [*rows, *map(trace, range(4))])
    config = config_over(make_config, store_path)
    paths = RunPaths.from_config(config)
    assert paths.store == store_path

    prepared = execute(PREPARE_STAGE, config, paths).manifest
    assert prepared.counts["kept"] == QUESTIONS + 2 * 4
    prompts = {prompt.id: prompt for prompt in load_prompts(paths.prompt_table)}
    opening = {prompt.messages[0]["content"]: prompt.split for prompt in prompts.values()}
    for prompt in prompts.values():
        assert prompt.split == opening[prompt.messages[0]["content"]], "a trace lies on both sides"

    generated = execute(GENERATE_STAGE, config, paths).manifest
    requests = load_requests(paths.requests)
    stored = {row.key: row for row in load_rows(load_store(store_path))}
    for request in requests:
        assert json.loads(stored[request.key].messages) == prompts[request.prompt_id].messages
        assert request.split == prompts[request.prompt_id].split
    pairs = [(request.prompt_id, request.sample_index) for request in requests]
    assert len(set(pairs)) == len(pairs)
    held_out = [request for request in requests if request.split == "eval"]
    assert len(held_out) == len({request.prompt_id for request in held_out}) == prepared.counts["eval"]
    assert generated.counts["requests"] == generated.counts["reused"] == generated.counts["done"]
    assert generated.counts["requests"] + generated.metrics["unused"] == len(stored)
    assert generated.metrics["engine"] == "imported:messages"
    assert generated.metrics["teacher"] == "some model"

    scored = execute(SCORE_STAGE, config, paths).manifest
    assert scored.counts["scored"] == scored.counts["tokenised"] == len(requests)
    store = load_store(store_path)
    scores = {key for part in range(store.num_partitions) for key in committed_keys(store, part, "scores")}
    assert scores == {request.key for request in requests}
    report = verify_store(store_path)
    assert report.ok
    assert report.answered_by == "some model (imported:messages)"
    assert load_store(store_path).identity.teacher == "some model"
    notes = estimate_workload(config, prepared, generated).notes
    assert any("some model (imported:messages): none is generated" in note for note in notes)


def test_more_answers_in_the_store_are_a_change(make_config: MakeConfig, tmp_path: Path) -> None:
    store = build_store(tmp_path, [conversation(index, 0) for index in range(QUESTIONS)])
    config = config_over(make_config, store)
    paths = RunPaths.from_config(config)
    first = execute(PREPARE_STAGE, config, paths).manifest
    assert execute(PREPARE_STAGE, config, paths).skipped
    build_store(tmp_path, [conversation(index, 0) for index in range(QUESTIONS + 4)])
    second = execute(PREPARE_STAGE, config, paths, fresh=True).manifest
    assert second.counts["kept"] == first.counts["kept"] + 4
    assert second.inputs != first.inputs


def test_answers_without_a_teacher_to_count_or_score(make_config: MakeConfig, tmp_path: Path) -> None:
    store = build_store(tmp_path, [conversation(index, 0) for index in range(QUESTIONS)])
    values = config_over(make_config, store).model_dump(mode="json")
    values["teacher"] |= {"open": None, "engine": "auto"}
    config = Config.model_validate(values)
    paths = RunPaths.from_config(config)
    execute(PREPARE_STAGE, config, paths)
    assert execute(GENERATE_STAGE, config, paths).manifest.counts["done"] == QUESTIONS


def test_a_store_without_answers_is_refused_first(make_config: MakeConfig, tmp_path: Path) -> None:
    config = config_over(make_config, tmp_path / "nothing")
    with pytest.raises(DataError, match="no teacher store"):
        execute(PREPARE_STAGE, config, RunPaths.from_config(config))
    empty = build_store(tmp_path, [{"messages": [{"role": "user", "content": "unanswered"}]}])
    with pytest.raises(DataError, match="no answers"):
        refused = config_over(make_config, empty)
        execute(PREPARE_STAGE, refused, RunPaths.from_config(refused))


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("pipeline", {"resume": False}, "resume"),
        ("signals", {"capture": "generation"}, "capture"),
    ],
)
def test_what_asking_would_need_is_refused(
    make_config: MakeConfig, section: str, values: dict[str, Any], named: str
) -> None:
    config = make_config("transformers", base={"from_store": "there"}, **{section: values})
    found = [problem.what for problem in find_answer_problems(LoadedConfig(config))]
    assert any(named in what for what in found)
