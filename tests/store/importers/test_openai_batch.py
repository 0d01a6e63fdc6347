"""Batch outputs of OpenAI and vLLM: joined with their requests, errors rejected, twice adds nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from foreign import DEMO_TEACHER, entry, load, request, response, write_lines

from raystill.errors import ConfigError, DataError
from raystill.store.reader import iter_tables, load_rows
from raystill.text.tokenizer import load_tokenizer


def test_answers_are_joined_with_their_requests_by_custom_id(tmp_path: Path) -> None:
    inputs = write_lines(tmp_path / "in.jsonl", request("a", "one?"), request("b", "two?", seed=7))
    outputs = write_lines(tmp_path / "out.jsonl", response("b", "2"), response("a", "1"))
    store, counts = load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    assert counts.num_added == 2
    rows = {row.prompt_id: row for row in load_rows(store)}
    assert rows["a"].completion == "1"
    assert json.loads(rows["b"].messages) == [{"role": "user", "content": "two?"}]
    assert json.loads(rows["a"].usage or "")["completion_tokens"] == 2
    assert store.identity.engine == "imported:openai-batch"
    assert store.identity.teacher == "some-teacher"


def test_what_went_wrong_is_rejected_with_its_reason(tmp_path: Path) -> None:
    inputs = write_lines(tmp_path / "in.jsonl", *(request(name) for name in "abcdefgh"))
    failed = {
        "id": "x", "custom_id": "b", "error": None,
        "response": {"status_code": 429, "body": {"error": {"message": "slow down"}}},
    }  # fmt: skip
    expired = {"id": "x", "custom_id": "c", "response": None, "error": {"code": "batch_expired"}}
    lying = {
        "custom_id": "d",
        "response": {"status_code": 200, "body": {"error": {"message": "overloaded"}}},
    }
    outputs = write_lines(
        tmp_path / "out.jsonl",
        response("a", "fine"), failed, expired, lying,
        response("e"), response("f", None), response("g", "cut", finish_reason="abort"),
        response("unknown", "x"), response("h", "one", None), "{broken", "[1]", '{"response": 1}',
    )  # fmt: skip
    store, counts = load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    assert counts.rejects_by_code == {
        "http_429": 1, "request_failed": 1, "error_with_200": 1, "no_choices": 1, "empty": 2,
        "finish_reason": 1, "no_request": 1, "not_json": 1, "not_an_object": 1, "no_custom_id": 1,
    }  # fmt: skip
    assert counts.num_added == 2
    reasons = {
        row["code"]: row["reason"]
        for table in iter_tables(store, kind="rejects")
        for row in table.to_pylist()
    }
    assert reasons["http_429"] == "out.jsonl:2: slow down"
    assert "batch_expired" in reasons["request_failed"]


def test_importing_twice_adds_nothing_and_other_answers_are_rows_of_their_own(tmp_path: Path) -> None:
    inputs = write_lines(tmp_path / "in.jsonl", request("a"), request("b"))
    outputs = write_lines(
        tmp_path / "out.jsonl", response("a", "four", "4"), response("a", "four"), response("b", "Four."), "?"
    )
    store, first = load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    assert (first.num_added, first.num_known, first.num_rejected) == (3, 1, 1)
    files = sorted(path.name for path in (tmp_path / "store").rglob("part-*"))
    store, again = load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    assert (again.num_added, again.num_known, again.num_rejected) == (0, 4, 1)
    assert sorted(path.name for path in (tmp_path / "store").rglob("part-*")) == files
    assert len(load_rows(store)) == 3


def test_logprobs_with_token_ids_become_a_signal(tmp_path: Path) -> None:
    content = [
        entry("token_id:5", -0.1, ("token_id:9", -3.0)),
        entry("token_id:2", -4.0, ("token_id:7", -0.05)),
    ]
    inputs = write_lines(tmp_path / "in.jsonl", request("a"))
    line = response("a", "yes", logprobs={"content": content})
    outputs = write_lines(tmp_path / "out.jsonl", line)
    store, counts = load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    assert counts.num_signals == 1
    (row,) = load_rows(store, with_signal=True)
    assert row.completion_token_ids.tolist() == [5, 2]
    assert row.signal is not None
    assert row.signal.topk_ids_TK.tolist() == [[5, 9], [7, 2]]
    np.testing.assert_allclose(
        np.exp(row.signal.tail_logprob_T), 1 - np.exp([-0.1, -0.05]) - np.exp([-3.0, -4.0]), rtol=1e-3
    )
    assert store.identity.num_logprobs == 2


def test_tokens_as_text_need_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(DEMO_TEACHER))
    ids = tokenizer("12 + 3", add_special_tokens=False)["input_ids"]
    content = [entry(tokenizer.decode([token]), -0.2) for token in ids]
    inputs = write_lines(tmp_path / "in.jsonl", request("a"))
    line = response("a", "12 + 3", logprobs={"content": content}, finish_reason="length")
    outputs = write_lines(tmp_path / "out.jsonl", line)
    (tmp_path / "plain").mkdir()
    store, counts = load(tmp_path / "plain", "openai-batch", outputs, inputs=(inputs,))
    assert (counts.num_added, counts.num_signals) == (1, 0)
    assert load_rows(store)[0].flags == ("logprobs_tokens_as_text",)
    store, counts = load(tmp_path, "openai-batch", outputs, inputs=(inputs,), tokenizer=str(DEMO_TEACHER))
    assert counts.num_signals == 1
    (row,) = load_rows(store, with_signal=True)
    assert row.completion_token_ids.tolist() == ids
    assert len(row.prompt_token_ids)
    assert store.identity.tokenizer_sha256


@pytest.mark.parametrize(
    "content",
    [
        [{"token": "token_id:5", "logprob": -1, "top_logprobs": 3}], [7], {"a": 1},
        [entry("token_id:5", 1.5)], [entry("token_id:5", -0.1, ("token_id:6", -0.1))],
        [entry("token_id:5", -0.1), {"token": "token_id:6", "logprob": -0.1, "top_logprobs": []}],
    ],
)  # fmt: skip
def test_logprobs_that_make_no_sense_leave_the_text(tmp_path: Path, content: object) -> None:
    inputs = write_lines(tmp_path / "in.jsonl", request("a"))
    outputs = write_lines(tmp_path / "out.jsonl", response("a", "yes", logprobs={"content": content}))
    store, counts = load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    assert (counts.num_added, counts.num_signals) == (1, 0)
    (row,) = load_rows(store)
    assert row.completion == "yes"
    assert row.flags[0].startswith("logprobs_")


def test_requests_are_asked_for_and_must_be_distinct(tmp_path: Path) -> None:
    outputs = write_lines(tmp_path / "out.jsonl", response("a", "x"))
    with pytest.raises(ConfigError, match="no prompts"):
        load(tmp_path, "openai-batch", outputs)
    inputs = write_lines(tmp_path / "in.jsonl", request("a"), request("a"))
    with pytest.raises(DataError, match="twice"):
        load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    assert not (tmp_path / "store").exists()


def test_a_store_of_another_teacher_is_refused(tmp_path: Path) -> None:
    inputs = write_lines(tmp_path / "in.jsonl", request("a"))
    outputs = write_lines(tmp_path / "out.jsonl", response("a", "x"))
    load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    rows = write_lines(
        tmp_path / "rows.jsonl",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    )
    with pytest.raises(DataError, match="another teacher"):
        load(tmp_path, "messages", rows)


def test_lone_surrogates_are_rejected(tmp_path: Path) -> None:
    """I20."""
    inputs = write_lines(tmp_path / "in.jsonl", request("a"), request("b", "\ud800?"))
    outputs = write_lines(tmp_path / "out.jsonl", response("a", "x\udc00"), response("b", "y"))
    _, counts = load(tmp_path, "openai-batch", outputs, inputs=(inputs,))
    assert counts.rejects_by_code == {"not_unicode": 2}


def test_ids_of_an_answer_with_calls_are_whole_or_none(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    message = {"role": "assistant", "content": "let me see", "tool_calls": [call]}
    content = [
        entry("token_id:5", -0.1, ("token_id:9", -3.0)),
        entry("token_id:2", -0.2, ("token_id:7", -3.0)),
    ]
    lines = []
    for name, used in (("text", 7), ("whole", 2)):
        line = response(name, "x", message=message, logprobs={"content": content}, finish_reason="tool_calls")
        line["response"]["body"]["usage"]["completion_tokens"] = used
        lines.append(line)
    lines.append(response("none", "x", message=message, finish_reason="tool_calls"))
    inputs = write_lines(tmp_path / "in.jsonl", *(request(name, name) for name in ("text", "whole", "none")))
    store, counts = load(
        tmp_path,
        "openai-batch",
        write_lines(tmp_path / "out.jsonl", *lines),
        inputs=(inputs,),
        tokenizer=str(DEMO_TEACHER),
    )
    assert (counts.num_added, counts.num_signals) == (3, 1)
    rows = {row.prompt_id: row for row in load_rows(store)}
    assert rows["whole"].completion_token_ids.tolist() == [5, 2]
    assert rows["text"].flags == ("logprobs_without_calls",)
    for name in ("text", "none"):
        assert len(rows[name].completion_token_ids) == 0
    assert all(json.loads(row.tool_calls or "") == [call] for row in rows.values())
