"""The JSONL export: the second seed's two keys, stable bytes, published whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from store_builder import IDENTITY, build_store, make_row

from raystill.errors import DataError
from raystill.store import export
from raystill.store.export import export_jsonl
from raystill.store.requests import Request, save_requests
from raystill.store.store import open_store


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def test_text_beyond_memory_is_sorted_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [replace(make_row(i), sample_index=i % 3, prompt_id=f"é{i % 7}") for i in range(40)]
    store = build_store(tmp_path / "store", rows, num_partitions=3, rows_per_part=5)
    export_jsonl(store, tmp_path / "memory.jsonl")
    monkeypatch.setattr(export, "_RUN_BYTES", 1)
    monkeypatch.setattr(export, "_BATCH_ROWS", 2)
    assert export_jsonl(store, tmp_path / "disk.jsonl") == 40
    assert (tmp_path / "disk.jsonl").read_bytes() == (tmp_path / "memory.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.jsonl", "memory.jsonl", "store"]


def test_rows_are_sorted_and_say_what_was_asked_and_answered(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in (3, 1, 2, 0)])
    assert export_jsonl(store, tmp_path / "out" / "teacher.jsonl") == 4
    records = read(tmp_path / "out" / "teacher.jsonl")
    assert [record["id"] for record in records] == [f"prompt-{i:05d}" for i in range(4)]
    question = {"role": "user", "content": "question 1 ü\u2028\n"}
    assert records[1] == {
        "id": "prompt-00001",
        "instruction": question["content"],
        "output": "answer 1",
        "messages": [question, {"role": "assistant", "content": "answer 1"}],
        "finish_reason": "stop",
        "split": "train",
        "source": "test",
    }
    assert records[0]["reasoning"] == "because"
    assert records[0]["flags"] == ["over_length"]


def test_equal_stores_give_equal_bytes(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(20)]
    rows.append(replace(make_row(77), prompt_id="prompt-00003", sample_index=1))
    for name, order, cut in (("a", rows, 20), ("b", rows[::-1], 2)):
        store = build_store(tmp_path / name, order, num_partitions=len(name) + cut % 3, rows_per_part=cut)
        export_jsonl(store, tmp_path / f"{name}.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_the_instruction_is_the_last_user_message(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "hm"},
        {"role": "user", "content": "second"},
    ]
    store = build_store(tmp_path / "store", [replace(make_row(1), messages=json.dumps(messages))])
    export_jsonl(store, tmp_path / "x.jsonl")
    assert read(tmp_path / "x.jsonl")[0]["instruction"] == "second"


def test_chosen_keys_and_an_empty_store(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(1), make_row(2)])
    save_requests(tmp_path / "run.parquet", [Request(make_row(1).key, "p", "train")])
    assert export_jsonl(store, tmp_path / "x.jsonl", requests=tmp_path / "run.parquet") == 1
    assert export_jsonl(open_store(tmp_path / "empty", IDENTITY, 2), tmp_path / "y.jsonl") == 0
    assert (tmp_path / "y.jsonl").read_bytes() == b""


def test_a_damaged_store_leaves_the_old_export_alone(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(1)])
    export_jsonl(store, tmp_path / "x.jsonl")
    before = (tmp_path / "x.jsonl").read_bytes()
    next(store.path.rglob("*.parquet")).unlink()
    with pytest.raises(DataError):
        export_jsonl(store, tmp_path / "x.jsonl")
    assert (tmp_path / "x.jsonl").read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["store", "x.jsonl"]
