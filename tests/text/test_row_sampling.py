"""What a row may ask for, and what is wrong with what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.text.row_sampling import parse_row_sampling

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (None, None),
        ("", None),
        ({}, None),
        ({"temperature": None, "top_p": None}, None),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"top_k": 5.0, "max_new_tokens": 7}, {"top_k": 5, "max_new_tokens": 7}),
        ('{"top_p": 0.5}', {"top_p": 0.5}),
        ({"json_schema": SCHEMA}, {"json_schema": SCHEMA}),
        ({"json_schema": '{"type": "string"}'}, {"json_schema": {"type": "string"}}),
    ],
)
def test_good(value: Any, parsed: Any) -> None:
    assert parse_row_sampling(value) == parsed


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "not JSON"),
        ([1], "list instead of an object"),
        ({"tempreature": 1}, "unknown key 'tempreature'"),
        ({"temperature": -0.1}, "sampling.temperature is -0.1"),
        ({"temperature": float("nan")}, "sampling.temperature"),
        ({"temperature": True}, "sampling.temperature is True"),
        ({"temperature": "hot"}, "sampling.temperature"),
        ({"top_p": 0}, "sampling.top_p is 0"),
        ({"top_k": 1.5}, "sampling.top_k is 1.5"),
        ({"top_k": -1}, "sampling.top_k"),
        ({"max_new_tokens": 0}, "sampling.max_new_tokens is 0"),
        ({"max_new_tokens": float("inf")}, "sampling.max_new_tokens"),
        ({"json_schema": {"type": "nothing"}}, "no JSON Schema"),
        ({"json_schema": 3}, "int instead of an object"),
    ],
)
def test_bad(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match="sampling") as caught:
        parse_row_sampling(value)
    assert words in str(caught.value)
