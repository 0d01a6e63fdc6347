"""Which shape a file has, by its columns, and what each shape makes of a row."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.prompts.rows import BadRow, RawRow
from raystill.prompts.shapes import Layout, RawPrompt, detect_layout, iter_prompts
from raystill.prompts.sources import Source

USER = {"role": "user", "content": "hi"}


def source(**settings: Any) -> Source:
    return Source(
        **{
            "config_key": "prompts.sources[0]",
            "label": "x",
            "path": "x.jsonl",
            "format": "jsonl",
            "shape": "auto",
            **settings,
        }
    )


def parse(value: dict[str, Any], **settings: Any) -> RawPrompt | BadRow:
    (result,) = iter_prompts(source(**settings), 0, [RawRow("x.jsonl:1", value)])
    return result


def parse_good(value: dict[str, Any], **settings: Any) -> RawPrompt:
    result = parse(value, **settings)
    assert isinstance(result, RawPrompt), result
    return result


@pytest.mark.parametrize(
    ("row", "settings", "layout"),
    [
        ({"messages": [USER], "prompt": "x"}, {}, Layout("messages", "messages")),
        ({"conversations": [{"from": "human", "value": "x"}]}, {}, Layout("sharegpt", "conversations")),
        ({"conversations": [USER]}, {}, Layout("messages", "conversations")),
        ({"prompt": "x", "instruction": "y"}, {}, Layout("prompt", "prompt")),
        ({"prompt": [USER]}, {}, Layout("messages", "prompt")),
        ({"instruction": "x"}, {}, Layout("instruction", "instruction")),
        ({"instruction": "x", "input": "", "output": "z"}, {}, Layout("alpaca", "instruction")),
        ({"instruction": "x", "output": "z"}, {}, Layout("alpaca", "instruction")),
        ({"text": "x", "prompt": "y"}, {"key": "text"}, Layout("prompt", "text")),
        ({"chat": [{"from": "human", "value": "x"}]}, {"key": "chat"}, Layout("sharegpt", "chat")),
        ({"q": "x", "input": "y"}, {"key": "q", "shape": "alpaca"}, Layout("alpaca", "q")),
        ({"prompt": "x", "instruction": "y"}, {"shape": "instruction"}, Layout("instruction", "instruction")),
    ],
)
def test_layouts(row: dict[str, Any], settings: dict[str, Any], layout: Layout) -> None:
    assert detect_layout(source(**settings), [RawRow("x", row)]) == layout


def test_answers_of_a_prepared_dataset_come_before_references() -> None:
    asked = {"messages": [USER], "completion": "said", "reference": "right", "task": "exact"}
    prepared = parse_good(asked, holds_answers=True)
    assert (prepared.reference, prepared.task) == ("said", "text")
    said = {"messages": [USER, {"role": "assistant", "content": "yes"}], "reference": "right"}
    assert parse_good(said, holds_answers=True).reference == "yes"
    assert parse_good({"instruction": "x", "output": "o"}, holds_answers=True).reference == "o"
    assert isinstance(parse({"prompt": "x", "reference": "r"}, holds_answers=True), BadRow)


def test_a_row_may_ask_for_its_own_sampling() -> None:
    assert parse_good({"prompt": "x", "sampling": {"temperature": 0.5}}).sampling == {"temperature": 0.5}
    assert parse_good({"prompt": "x", "sampling": None}).sampling is None
    bad = parse({"prompt": "x", "sampling": {"top_p": 2}})
    assert isinstance(bad, BadRow)
    assert (bad.where, bad.code) == ("x.jsonl:1", "sampling")
    assert "sampling.top_p is 2" in bad.reason


def test_references() -> None:
    answered = {"messages": [USER, {"role": "assistant", "content": "yes"}]}
    assert parse_good(answered).reference == "yes"
    assert parse_good({**answered, "reference": "no"}).reference == "no"
    assert parse_good({"prompt": "x", "completion": "c"}).reference == "c"
    assert parse_good({"prompt": "x", "completion": "c", "reference": "r"}).reference == "r"
    assert parse_good({"prompt": "x", "completion": ""}).reference is None
    assert parse_good({"instruction": "x", "input": "", "output": "o"}).reference == "o"
    assert parse_good({"prompt": "p", "completion": "x"}, key="completion").reference is None


def test_system_columns() -> None:
    with_system = parse_good({"prompt": "x", "system": "s"}).messages
    assert with_system == [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    assert parse_good({"prompt": "x", "system": ""}).messages == [{"role": "user", "content": "x"}]
    turns = [{"from": "system", "value": "own"}, {"from": "human", "value": "x"}]
    assert parse_good({"conversations": turns, "system": "s"}).messages[0]["content"] == "own"
    assert parse_good({"conversations": turns[1:], "system": "s"}).messages[0]["content"] == "s"


def test_tool_results_stay_in_the_middle() -> None:
    turns = [USER, {"role": "assistant", "content": "looking"}, {"role": "tool", "content": "42"}, USER]
    assert [m["role"] for m in parse_good({"messages": turns}).messages] == [
        "user",
        "assistant",
        "tool",
        "user",
    ]
    result = parse({"messages": turns[:3]})
    assert isinstance(result, BadRow)
    assert "ends with tool" in result.reason


def test_other_keys_of_a_turn_are_left_out_and_arrow_nulls_ignored() -> None:
    turn = {**USER, "name": "Ann", "tool_calls": None}
    assert parse_good({"messages": [turn]}).messages == [USER]


def test_function_calls_of_sharegpt_are_refused() -> None:
    """I18."""
    turns = [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}]
    result = parse({"conversations": turns})
    assert isinstance(result, BadRow)
    assert result.code == "tool_calls"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, "7"), (" a ", "a"), ("", None), (None, None), (True, None), (1.5, None), ("a\n", None)],
)
def test_ids_that_a_file_happens_to_have(value: Any, expected: str | None) -> None:
    assert parse_good({"prompt": "x", "id": value}).id == expected


@pytest.mark.parametrize("value", [True, 1.5, ["a"], "a\nb"])
def test_configured_ids_of_other_kinds_are_bad_rows(value: Any) -> None:
    result = parse({"prompt": "x", "uid": value}, id_column="uid")
    assert isinstance(result, BadRow)
    assert result.code == "id"


def test_both_dialects_in_one_conversation() -> None:
    """I19."""
    from raystill.errors import DataError

    rows = [
        RawRow(f"x:{n}", {"conversations": turns})
        for n, turns in enumerate(
            ([{"from": "human", "value": "x"}], [{"from": "human", "value": "x"}, USER])
        )
    ]
    with pytest.raises(DataError, match="mix two shapes: x:0 has from/value, x:1 has both"):
        list(iter_prompts(source(), 0, rows))
