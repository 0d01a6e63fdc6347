"""A prepared dataset: its prompts and answers become a run's rows, without an engine and without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystill.config.prepared import find_prepared
from raystill.config.schema import Config
from raystill.errors import DataError, EnvironmentFault, RemoteError
from raystill.prompts.stage import STAGE as PREPARE_STAGE
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.store.reader import load_rows
from raystill.store.store import load_store
from raystill.teacher.generate_stage import GENERATE_STAGE

MakeConfig = Callable[..., Config]


def config_with(make_config: MakeConfig, **download: Any) -> Config:
    base = make_config("transformers").model_dump(mode="json")
    base["teacher"]["open"]["data"]["download"].update(download)
    base["teacher"]["vllm"] = {}
    base["prompts"] = {"eval_size": 3, "sources": [{"path": "ignored.jsonl"}]}
    return Config.model_validate(base)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS = [
    {"instruction": f"Write function {index}.", "output": f"def f{index}(): return {index}"}
    for index in range(20)
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "completion"])
def test_answers_become_rows(make_config: MakeConfig, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"prepared.{'parquet' if kind == 'parquet' else 'jsonl'}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        write_rows(path, ROWS)
    else:
        turns = [[{"role": "user", "content": row["instruction"]}] for row in ROWS]
        rows = [
            {"messages": messages, "completion": row["output"], "reference": "something else"}
            for messages, row in zip(turns, ROWS, strict=True)
        ]
        write_rows(path, rows)
    config = config_with(make_config, path=str(path))
    paths = RunPaths.from_config(config)
    assert execute(PREPARE_STAGE, config, paths).manifest.counts["kept"] == 20
    manifest = execute(GENERATE_STAGE, config, paths).manifest
    assert manifest.counts["done"] == manifest.counts["requests"] == 20
    assert manifest.metrics["engine"] == "download"
    store = load_store(paths.store)
    assert store.identity.engine == "download"
    rows = load_rows(store)
    answers = {row["instruction"]: row["output"] for row in ROWS}
    for row in rows:
        assert row.completion == answers[json.loads(row.messages)[-1]["content"]]
        assert len(row.completion_token_ids) > 0
        assert row.flags == ("imported",)
        assert row.signal is None
    assert sum(row.split == "eval" for row in rows) == 3
    again = execute(GENERATE_STAGE, config, paths, fresh=True).manifest
    assert again.counts["reused"] == 20
    assert again.fingerprint == manifest.fingerprint


def test_a_row_without_an_answer_is_a_bad_row(make_config: MakeConfig, tmp_path: Path) -> None:
    """I18."""
    path = tmp_path / "prepared.jsonl"
    write_rows(path, [*ROWS, {"instruction": "No answer.", "output": ""}])
    config = config_with(make_config, path=str(path))
    with pytest.raises(DataError, match="no teacher's answer"):
        execute(PREPARE_STAGE, config, RunPaths.from_config(config))


def test_changed_content_is_another_teacher(make_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "prepared.jsonl"
    write_rows(path, ROWS)
    config = config_with(make_config, path=str(path))
    paths = RunPaths.from_config(config)
    execute(PREPARE_STAGE, config, paths)
    execute(GENERATE_STAGE, config, paths)
    write_rows(path, ROWS[:10])
    execute(PREPARE_STAGE, config, paths, fresh=True)
    with pytest.raises(DataError, match="another teacher"):
        execute(GENERATE_STAGE, config, paths, fresh=True)


def test_sizes_are_revisions(make_config: MakeConfig) -> None:
    prepared = find_prepared(config_with(make_config, size="32k").teacher)
    assert prepared is not None
    assert prepared.revision == "v5-GoogleDocString"
    assert find_prepared(make_config().teacher) is None


def test_offline_is_one_error_that_names_the_local_way(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True, raising=False)
    config = config_with(make_config, size="64k")
    with pytest.raises((RemoteError, EnvironmentFault)) as caught:
        execute(PREPARE_STAGE, config, RunPaths.from_config(config))
    assert "teacher.open.data.download.path" in caught.value.problems[0].fix
    assert len(caught.value.problems) == 1
