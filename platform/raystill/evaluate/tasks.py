"""Scoring of one completion. Pure, and total: whatever text a model writes, it gets a verdict.

A verdict answers as many questions as the task asks. `exact`: equal to the reference once both are
stripped. `tool_call`: one JSON object with `name` and `arguments`, equal to the reference as JSON (key
order and whitespace are free, `1` equals `1.0`, `true` does not equal `1`). `text`: no right answer,
nothing judged. An empty completion is never right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from raystill.errors import DataError
from raystill.text.prompt_row import Prompt, TaskKind


@dataclass(frozen=True)
class ToolCall:
    """A tool's name and its JSON arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What is right about one completion; None where the task doesn't ask.

    `correct` implies `json_valid`, `tool_selected` and `arguments_equal` for tool calls.
    """

    empty: bool
    correct: bool | None = None
    json_valid: bool | None = None
    tool_selected: bool | None = None
    arguments_equal: bool | None = None


def parse_json(text: str) -> Any:
    """Strict JSON: NaN, Infinity and repeated keys are errors. Raises ValueError, also for absurd nesting."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_pairs)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_tool_call(text: str) -> ToolCall | None:
    """The tool call that `text` consists of, or None where it isn't one."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    if not isinstance(value.get("arguments"), dict):
        return None
    return ToolCall(value["name"], value["arguments"])


def json_equal(left: Any, right: Any) -> bool:
    """Whether two parsed JSON values mean the same. Iterative, so depth is no limit."""
    pending = [(left, right)]
    while pending:
        a, b = pending.pop()
        if isinstance(a, bool) or isinstance(b, bool):
            if a is not b:
                return False
        elif isinstance(a, int | float) and isinstance(b, int | float):
            if a != b:
                return False
        elif isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pending += [(a[key], b[key]) for key in a]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pending += zip(a, b, strict=True)
        elif type(a) is not type(b) or a != b:
            return False
    return True


def score_completion(completion: str, reference: str | None, task: TaskKind) -> Verdict:
    """Judge one completion. Never raises for any completion.

    Raises DataError if the reference of a tool call isn't a tool call itself.
    """
    empty = not completion.strip()
    if task == "tool_call":
        return _score_tool_call(completion, reference, empty=empty)
    if task == "exact" and reference is not None:
        return Verdict(empty=empty, correct=not empty and completion.strip() == reference.strip())
    return Verdict(empty=empty)


def validate_references(prompts: Iterable[Prompt]) -> None:
    """Check that verifiable prompts have usable answers. Raises DataError naming the first that hasn't."""
    for prompt in prompts:
        if prompt.task == "text":
            continue
        usable = bool(prompt.reference and prompt.reference.strip())
        if prompt.task == "tool_call":
            usable = usable and parse_tool_call(prompt.reference or "") is not None
        if not usable:
            raise DataError(
                f"the reference of a {prompt.task} prompt can't be compared with anything",
                where=f"prompt {prompt.id} of {prompt.source}",
                fix='give the right answer as text, or as {"name": ..., "arguments": {...}} for a tool call',
            )


def _score_tool_call(completion: str, reference: str | None, *, empty: bool) -> Verdict:
    call = parse_tool_call(completion)
    if reference is None:
        return Verdict(empty=empty, json_valid=call is not None)
    wanted = parse_tool_call(reference)
    if wanted is None:
        raise DataError("the reference of a tool call isn't a tool call", where=reference[:80])
    if call is None:
        return Verdict(empty, correct=False, json_valid=False, tool_selected=False, arguments_equal=False)
    selected = call.name == wanted.name
    equal = json_equal(call.arguments, wanted.arguments)
    return Verdict(empty, selected and equal, True, selected, equal)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is repeated")
    return value
