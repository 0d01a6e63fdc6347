"""Answers from elsewhere in the shapes that Hugging Face datasets have."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import DEMO_TEACHER, load, write_lines

from raystill.errors import DataError
from raystill.store.reader import keys_to_score, load_rows
from raystill.text.chat import load_chat_format

QUESTION = {"role": "user", "content": "12 + 3 ="}
ANSWER = {"role": "assistant", "content": "15"}


def test_jsonl_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    records = [
        {"messages": [{"role": "system", "content": "s"}, QUESTION, ANSWER], "id": "one"},
        {"messages": [QUESTION, {"role": "assistant", "content": "15", "tool_calls": None}]},
    ]
    lines = write_lines(tmp_path / "rows.jsonl", *records)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    store, counts = load(tmp_path, "messages", lines)
    assert counts.num_added == 2
    _, again = load(tmp_path, "messages", tmp_path / "rows.parquet")
    assert (again.num_added, again.num_known) == (0, 2)
    rows = sorted(load_rows(store), key=lambda row: len(row.messages))
    assert json.loads(rows[0].messages) == [QUESTION]
    assert rows[1].prompt_id == "one"
    assert rows[0].completion == "15"


def test_prompt_and_completion_are_read_as_trl_writes_them(tmp_path: Path) -> None:
    lines = write_lines(
        tmp_path / "rows.jsonl",
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": "12 + 4 =", "completion": "16"},
    )
    store, counts = load(tmp_path, "messages", lines)
    assert counts.num_added == 2
    assert {row.completion for row in load_rows(store)} == {"15", "16"}


def test_with_a_tokenizer_rows_can_be_scored(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "rows.jsonl", {"messages": [QUESTION, ANSWER]})
    store, _ = load(tmp_path, "messages", lines, tokenizer=str(DEMO_TEACHER))
    (row,) = load_rows(store)
    chat = load_chat_format(str(DEMO_TEACHER))
    example = chat.training_example([QUESTION], "15")
    assert [*row.prompt_token_ids.tolist(), *row.completion_token_ids.tolist()] == example.input_ids
    pending = [key for part in range(store.num_partitions) for key in keys_to_score(store, part, 4)]
    assert pending == [row.key]


def test_every_bad_row_has_its_reason(tmp_path: Path) -> None:
    """I18: a conversation that ends with the user has no answer to train on."""
    lines = write_lines(
        tmp_path / "rows.jsonl",
        {"messages": [QUESTION]}, {"messages": [ANSWER]}, {"messages": []}, {"text": "x"},
        {"messages": "not json"}, {"messages": [QUESTION, {"role": "assistant", "content": ""}]},
        {"messages": [QUESTION, {"role": "assistant", "content": 3}]}, {"messages": [QUESTION, "x"]},
        {"messages": [QUESTION, ANSWER]},
    )  # fmt: skip
    _, counts = load(tmp_path, "messages", lines)
    assert counts.rejects_by_code == {"no_answer": 2, "bad_messages": 4, "no_messages": 1, "empty": 1}
    assert counts.num_added == 1


def test_tool_calls_are_answers_too(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    lines = write_lines(
        tmp_path / "rows.jsonl",
        {"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]},
    )
    store, _ = load(tmp_path, "messages", lines)
    (row,) = load_rows(store)
    assert json.loads(row.tool_calls or "") == [call]


def test_files_that_are_no_such_thing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no PAR1")
    for name in ("rows.parquet", "missing.jsonl"):
        with pytest.raises(DataError, match="can't be read"):
            load(tmp_path, "messages", tmp_path / name)
    assert not (tmp_path / "store").exists()


def test_a_trace_is_one_answer_per_turn_of_the_assistant(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    trace = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "15"},
        ANSWER,
        {"role": "user", "content": "and 1 more?"},
        {"role": "assistant", "content": "16"},
    ]
    lines = write_lines(tmp_path / "rows.jsonl", {"messages": trace, "id": "t", "split": "eval"})
    store, counts = load(tmp_path, "messages", lines)
    assert (counts.num_read, counts.num_added) == (3, 3)
    rows = {row.prompt_id: row for row in load_rows(store)}
    assert {name: len(json.loads(row.messages)) for name, row in rows.items()} == {"t#1": 1, "t#3": 3, "t": 5}
    assert [rows[name].flags for name in ("t#1", "t#3", "t")] == [("earlier_turn",), ("earlier_turn",), ()]
    assert json.loads(rows["t#1"].tool_calls or "") == [call] and rows["t#3"].completion == "15"
    assert {row.split for row in rows.values()} == {"eval"}
    pending = [key for part in range(store.num_partitions) for key in keys_to_score(store, part, 4)]
    assert len(pending) == 3
