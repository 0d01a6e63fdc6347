"""Rows and tokens of sources, counted without parsing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystill.cluster import workload
from raystill.cluster.workload import count_source, estimate_workload
from raystill.config.general import PromptSource
from raystill.config.schema import Config
from raystill.run.manifest import Manifest


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n' * 7, 7),
        ("unended.jsonl", b'{"prompt": "x"}\n{"prompt": "y"}', 2),
        ("a.csv", b"prompt\nx\ny\n", 2),
        ("empty.jsonl", b"", 0),
    ],
)
def test_lines_are_rows(name: str, content: bytes, rows: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert count_source(PromptSource(path=str(path))) == (rows, len(content))


def test_parquet_says_its_rows_and_a_broken_one_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["x"] * 12}), path)
    assert count_source(PromptSource(path=str(path)))[0] == 12
    path.write_bytes(b"not parquet")
    assert count_source(PromptSource(path=str(path)))[0] is None


def test_a_limit_cuts_rows_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 9 + b"\n" + (b"y" * 9 + b"\n") * 99)
    assert count_source(PromptSource(path=str(path), limit=10)) == (10, 100)


def test_large_files_are_extrapolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "_SAMPLE_BYTES", 1000)
    monkeypatch.setattr(workload, "_CHUNK_BYTES", 500)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"0123456789abcde\n" * 1000)
    rows, _ = count_source(PromptSource(path=str(path)))
    assert rows is not None and 950 <= rows <= 1050


def test_what_cannot_be_counted_is_unknown_and_said(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"prompts": {"sources": [{"path": str(tmp_path / "missing.jsonl")}, {"path": str(tmp_path)}]}}
    )
    found = estimate_workload(config, None, None)
    assert found.rows is None and found.prompt_tokens is None
    assert any("missing.jsonl" in note for note in found.notes)


def test_a_finished_prepare_wins_over_estimates(tmp_path: Path) -> None:
    manifest = Manifest(
        stage="prepare", fingerprint="f", config={}, inputs={}, counts={"kept": 90, "eval": 10, "train": 80},
        metrics={"prompt_tokens": {"total": 900}},
    )  # fmt: skip
    config = Config.model_validate(
        {"teacher": {"open": {"model": {"name": "t"}, "pipeline": {"max_new_tokens": 20}}}}
    )
    found = estimate_workload(config, manifest, None)
    assert (found.rows, found.eval_rows, found.train_rows, found.prompt_tokens) == (90, 10, 80, 900)
    assert found.completion_tokens == 900
    assert found.is_measured
