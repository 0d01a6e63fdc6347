"""Tool calls that no tool would take.

A row is a tool call where its prompt asks for one (`task` is tool_call) or the endpoint returned calls. The
call is `{"name", "arguments"}` in the completion, or a list of OpenAI `tool_calls`, whose arguments may be
JSON text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from raystill.curate.candidate import Candidate, Drop
from raystill.text.tool_schema import ToolSchema

_LONGEST_DETAIL = 200


@dataclass(frozen=True)
class ToolCallCheck:
    """Drops calls of unknown tools, and calls whose arguments don't fit."""

    schema: ToolSchema

    def __call__(self, row: Candidate) -> Drop | None:
        """None keeps the row."""
        if row.tool_calls:
            return self._check_list(row.tool_calls)
        if row.task != "tool_call":
            return None
        return _drop(self.schema.call_problem(row.completion))

    def _check_list(self, text: str) -> Drop | None:
        try:
            calls = json.loads(text)
        except ValueError:
            return _drop("tool_calls is not JSON")
        if not isinstance(calls, list) or not calls:
            return _drop("tool_calls is not a list of calls")
        problems = (self.schema.call_problem(json.dumps(_plain_call(call))) for call in calls)
        return _drop(next((problem for problem in problems if problem), ""))


def _plain_call(call: Any) -> Any:
    """`{"name", "arguments"}` of an OpenAI call, its arguments parsed where they are JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict):
        return function
    plain = {name: function[name] for name in ("name", "arguments") if name in function}
    if isinstance(plain.get("arguments"), str):
        try:
            plain["arguments"] = json.loads(plain["arguments"])
        except ValueError:
            return plain
    return plain


def _drop(problem: str) -> Drop | None:
    return Drop("tool_call", problem[:_LONGEST_DETAIL]) if problem else None
