"""`teacher.base.tool_schema`: the tools that a completion may call, and the JSON Schema of one call.

Two kinds of file are read. The OpenAI tools format, a list (or `{"tools": [...]}`) of

    {"type": "function", "function": {"name": "...", "description": "...", "parameters": {JSON Schema}}}

makes a call `{"name": <one of the names>, "arguments": <what that tool's parameters allow>}`. A JSON Schema
of an object with the properties `name` and `arguments` is taken as it is, and offers a template no tools.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.errors import ConfigError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from raystill.text.chat import ChatFormat

CONFIG_KEY = "teacher.base.tool_schema"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolSchema:
    """The schema of one call, and the tools to offer to a chat template (empty for a plain JSON Schema)."""

    call_schema: dict[str, Any]
    tools: tuple[dict[str, Any], ...] = ()

    @cached_property
    def text(self) -> str:
        """The call's schema in one spelling: equal schemas are equal texts."""
        return json.dumps(self.call_schema, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @cached_property
    def sha256(self) -> str:
        """Hex sha256 of the call's schema and of the tools."""
        described = json.dumps([self.call_schema, self.tools], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(described.encode("ascii")).hexdigest()

    @cached_property
    def _validator(self) -> Validator:
        from jsonschema.validators import validator_for

        kind = validator_for(self.call_schema)
        return kind(self.call_schema)

    def call_problem(self, text: str) -> str:
        """Why `text` is not one valid call, "" if it is."""
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return "it is not JSON"
        errors = sorted(self._validator.iter_errors(call), key=lambda error: len(error.path), reverse=True)
        return errors[0].message if errors else ""


def load_tool_schema(path: str | Path, where: str = CONFIG_KEY) -> ToolSchema:
    """Read and check a file of tools. Raises ConfigError naming the file and the tool that is wrong."""
    file = Path(path).expanduser()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("the file of tools is not there", where=f"{where}: {file}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            "the file of tools can't be read as JSON", where=f"{where}: {file}", fix="repair the file"
        ) from error
    try:
        return parse_tool_schema(content)
    except ValueError as error:
        raise ConfigError(
            f"the file of tools is wrong: {error}",
            where=f"{where}: {file}",
            fix='write a list of {"type": "function", "function": {"name", "description", "parameters"}}',
        ) from error


def offer_tools(chat: ChatFormat, path: str | None) -> ChatFormat:
    """`chat` with the tools of the file `teacher.base.tool_schema` in its prompts, if the template takes any.

    Every part that renders prompts of a run goes through here: teacher, student and evaluation see the same.
    """
    return chat if path is None else chat.with_tools(load_tool_schema(path).tools)


def parse_tool_schema(content: Any) -> ToolSchema:
    """The schema that `content` (parsed JSON) describes. Raises ValueError saying what is wrong."""
    if isinstance(content, dict) and "tools" in content:
        content = content["tools"]
    if isinstance(content, dict):
        return ToolSchema(_check_call_schema(content))
    if not isinstance(content, list) or not content:
        raise ValueError("it holds neither a list of tools nor a JSON Schema of a call")
    functions = [_check_tool(tool, index) for index, tool in enumerate(content)]
    names = [function["name"] for function in functions]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two tools are called {twice!r}")
    calls = [_call_of(function) for function in functions]
    tools = tuple({"type": "function", "function": function} for function in functions)
    return ToolSchema(calls[0] if len(calls) == 1 else {"anyOf": calls}, tools)


def _check_tool(tool: Any, index: int) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"tool {index} is no object with a `function` that has a `name`")
    parameters = function.get("parameters", _NO_ARGUMENTS)
    _check_schema(parameters, f"the parameters of {function['name']!r}")
    return {**function, "parameters": parameters}


def _call_of(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": function["parameters"]},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _check_call_schema(schema: dict[str, Any]) -> dict[str, Any]:
    _check_schema(schema, "the schema of a call")
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not {"name", "arguments"} <= set(properties):
        raise ValueError("the schema of a call has no properties `name` and `arguments`")
    return schema


def _check_schema(schema: Any, what: str) -> None:
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict):
        raise ValueError(f"{what} is no JSON Schema")
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{what} is no JSON Schema: {error.message}") from error
