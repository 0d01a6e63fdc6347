"""Scoring: right is right, and no text that a model could write makes it raise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.errors import DataError
from raystill.evaluate.tasks import (
    Verdict,
    json_equal,
    parse_json,
    parse_tool_call,
    score_completion,
    validate_references,
)
from raystill.text.prompt_row import Prompt, TaskKind

REFERENCE = '{"name": "pay", "arguments": {"to": "Ana", "amount": 5, "urgent": true}}'
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("completion", "valid", "selected", "equal"),
    [
        (REFERENCE, True, True, True),
        ('\n {"arguments":{"urgent":true,"amount":5.0,"to":"Ana"},"name":"pay"} ', True, True, True),
        ('{"name": "pay", "arguments": {"to": "Ana", "amount": 6, "urgent": true}}', True, True, False),
        ('{"name": "pay", "arguments": {"to": "Ana", "amount": 5, "urgent": 1}}', True, True, False),
        ('{"name": "pay", "arguments": {"to": "Ana", "amount": 5}}', True, True, False),
        (
            '{"name": "pay", "arguments": {"to": "Ana", "amount": 5, "urgent": true, "x": null}}',
            True,
            True,
            False,
        ),
        ('{"name": "send", "arguments": {"to": "Ana", "amount": 5, "urgent": true}}', True, False, True),
        ("", False, False, False),
        ("   \n", False, False, False),
        (REFERENCE[:-1], False, False, False),
        (REFERENCE + REFERENCE, False, False, False),
        (f"Sure: {REFERENCE}", False, False, False),
        ('{"name": "pay", "name": "pay", "arguments": {}}', False, False, False),
        ('{"name": "pay", "arguments": {"amount": NaN}}', False, False, False),
        ('{"name": "pay", "arguments": "{}"}', False, False, False),
        ('{"name": 7, "arguments": {}}', False, False, False),
        ('["pay"]', False, False, False),
        ("null", False, False, False),
        ("[" * 100_000, False, False, False),
        ('{"a":' * 50_000, False, False, False),
        ("9" * 10_000, False, False, False),
        ("\ud800\x00\x1b[31m", False, False, False),
    ],
)
def test_tool_calls(completion: str, valid: bool, selected: bool, equal: bool) -> None:
    verdict = score_completion(completion, REFERENCE, "tool_call")
    assert (verdict.json_valid, verdict.tool_selected, verdict.arguments_equal) == (valid, selected, equal)
    assert verdict.correct is (valid and selected and equal)
    assert verdict.empty is (not completion.strip())


@pytest.mark.parametrize(
    ("completion", "reference", "correct"),
    [
        ("42", "42", True),
        (" 42\n", "42", True),
        ("42.", "42", False),
        ("", "42", False),
        ("  ", " ", False),
        ("", "", False),
    ],
)
def test_exact_answers(completion: str, reference: str, correct: bool) -> None:
    assert score_completion(completion, reference, "exact").correct is correct


def test_text_is_not_judged() -> None:
    assert score_completion("anything", None, "text") == Verdict(empty=False)
    assert score_completion("", "reference", "text") == Verdict(empty=True)


@given(completion=st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_no_completion_raises(completion: str) -> None:
    tasks: tuple[TaskKind, ...] = ("tool_call", "exact", "text")
    for task in tasks:
        verdict = score_completion(completion, REFERENCE, task)
        assert not (verdict.correct and verdict.empty)


@given(name=st.text(), arguments=st.dictionaries(st.text(), VALUES, max_size=4), other=VALUES)
def test_correct_means_valid_selected_and_equal(
    name: str, arguments: dict[str, object], other: object
) -> None:
    reference = json.dumps({"name": name, "arguments": arguments})
    for completion in (reference, json.dumps(other), json.dumps({"name": name, "arguments": other})):
        verdict = score_completion(completion, reference, "tool_call")
        parts = (verdict.json_valid, verdict.tool_selected, verdict.arguments_equal)
        assert verdict.correct is all(parts)
    assert score_completion(reference, reference, "tool_call").correct


@given(value=VALUES, other=VALUES)
def test_json_equality_agrees_with_canonical_text(value: object, other: object) -> None:
    assert json_equal(value, json.loads(json.dumps(value)))
    assert json_equal(value, other) == json_equal(other, value)


def test_booleans_are_not_numbers() -> None:
    assert not json_equal(True, 1)
    assert not json_equal([0], [False])
    assert json_equal({"a": 1}, {"a": 1.0})
    assert not json_equal(None, 0)


def test_strict_json() -> None:
    for text in ("Infinity", "-Infinity", "NaN", '{"a": 1, "a": 1}', "{'a': 1}", ""):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_tool_call('{"name": "", "arguments": {}}') is not None


def _prompt(task: TaskKind, reference: str | None) -> Prompt:
    return Prompt("p1", "file.jsonl", "eval", [{"role": "user", "content": "hi"}], task, reference, 3)


@pytest.mark.parametrize(
    ("task", "reference"),
    [("tool_call", "pay Ana"), ("tool_call", None), ("exact", None), ("exact", "  "), ("tool_call", "{}")],
)
def test_unusable_references_are_refused_by_name(task: TaskKind, reference: str | None) -> None:
    with pytest.raises(DataError, match=r"prompt p1 of file\.jsonl"):
        validate_references([_prompt("text", None), _prompt(task, reference)])


def test_usable_references_pass() -> None:
    validate_references([_prompt("text", None), _prompt("exact", "4"), _prompt("tool_call", REFERENCE)])
