"""Tools in both spellings, what makes a valid call, and tools in a chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raystill.errors import ConfigError
from raystill.text.chat import ChatFormat
from raystill.text.tool_schema import load_tool_schema, offer_tools, parse_tool_schema

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "tool_schema.json"
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}},
                                     "required": ["a"], "additionalProperties": False}}  # fmt: skip
NOW = {"name": "now"}
WITH_TOOLS = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', True),
        ('{"name": "now", "arguments": {}}', True),
        ('{"name": "now"}', False),
        ('{"name": "now", "arguments": {"zone": "x"}}', False),
        ('{"name": "add", "arguments": {"a": "1"}}', False),
        ('{"name": "sub", "arguments": {}}', False),
        ('{"name": "add", "arguments": {"a": 1}, "why": ""}', False),
        ('{"name": "add"', False),
        ("", False),
    ],
)
def test_calls(text: str, is_valid: bool) -> None:
    schema = parse_tool_schema([{"type": "function", "function": ADD}, NOW])
    assert (schema.call_problem(text) == "") == is_valid


def test_a_plain_schema_of_a_call_is_taken_as_it_is() -> None:
    plain = {
        "title": "ToolCall", "type": "object", "required": ["name", "arguments"],
        "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}},
    }  # fmt: skip
    schema = parse_tool_schema(plain)
    assert schema.tools == ()
    assert schema.call_problem('{"name": "x", "arguments": {"y": 1}}') == ""


def test_the_shipped_file() -> None:
    schema = load_tool_schema(SHIPPED)
    assert {tool["function"]["name"] for tool in schema.tools} >= {"read_file", "run_code"}
    assert schema.call_problem('{"name": "read_file", "arguments": {"path": "a.txt"}}') == ""
    assert schema.call_problem('{"name": "run_code", "arguments": {"language": "c", "code": ""}}')


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{", '{"type": "object"}', '[{"function": {}}]', '[{"name": "a", "parameters": 3}]',
     '[{"name": "a"}, {"name": "a"}]', '[{"name": "a", "parameters": {"type": "nothing"}}]'],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_tool_schema(path)
    assert str(path) in caught.value.problems[0].where
    with pytest.raises(ConfigError, match="not there"):
        load_tool_schema(tmp_path / "missing.json")


def test_tools_are_offered_where_the_template_takes_them(build_tokenizer: Callable[..., Any]) -> None:
    messages = [{"role": "user", "content": "hello"}]
    takes, ignores = ChatFormat(build_tokenizer(chat_template=WITH_TOOLS)), ChatFormat(build_tokenizer())
    assert offer_tools(takes, None) is takes
    assert offer_tools(ignores, str(SHIPPED)) is ignores
    text = offer_tools(takes, str(SHIPPED)).render_text(messages)
    offered = json.loads(text.splitlines()[0].removeprefix("tools: "))
    assert [tool["function"]["name"] for tool in offered][:2] == ["read_file", "write_file"]
