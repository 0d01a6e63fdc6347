"""Filters that look at one row alone: empty, finish reason, length, tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raystill.curate.empty import check_empty
from raystill.curate.finish_reason import FinishReasonCheck
from raystill.curate.length import LengthCheck
from raystill.curate.tool_calls import ToolCallCheck
from raystill.text.tool_schema import parse_tool_schema

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


def test_empty(candidate: Any) -> None:
    assert check_empty(candidate(" \n\t")) is not None
    assert check_empty(candidate("x")) is None
    assert check_empty(candidate("", tool_calls="[{}]")) is None


def test_finish_reasons(candidate: Any) -> None:
    check = FinishReasonCheck({"stop"})
    assert check(candidate()) is None
    drop = check(candidate(finish_reason="content_filter"))
    assert drop is not None and drop.detail == "content_filter"


@pytest.mark.parametrize(("tokens", "code"), [(1, "too_short"), (2, None), (4, None), (5, "too_long")])
def test_length_bounds_are_included(candidate: Any, tokens: int, code: str | None) -> None:
    drop = LengthCheck(2, 4)(candidate(num_tokens=tokens))
    assert (drop and drop.code) == code


def test_a_row_of_unknown_length_passes(candidate: Any) -> None:
    assert LengthCheck(2, 4)(candidate(num_tokens=None)) is None


@pytest.mark.parametrize(
    ("completion", "calls", "is_kept"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', None, True),
        ('{"name": "add", "arguments": {"a": "1"}}', None, False),
        ('{"name": "sub", "arguments": {"a": 1}}', None, False),
        ('{"name": "add", "arguments": {"a": 1}} and more', None, False),
        ("", [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}], True),
        ("", [{"type": "function", "function": {"name": "add", "arguments": "{a"}}], False),
        ("", [{"function": {"name": "add", "arguments": '{"a": 1}'}}, {"function": {"name": "x"}}], False),
        ("", [], False),
    ],
)
def test_tool_calls(candidate: Any, completion: str, calls: Any, is_kept: bool) -> None:
    check = ToolCallCheck(parse_tool_schema([TOOL]))
    row = candidate(completion, task="tool_call", tool_calls=None if calls is None else json.dumps(calls))
    assert (check(row) is None) == is_kept


def test_text_is_not_a_call(candidate: Any) -> None:
    assert ToolCallCheck(parse_tool_schema([TOOL]))(candidate("Fine weather.")) is None
