"""Conversations of foreign rows: checked, split into prompt and answer, and turned into token ids."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from raystill.errors import DataError
from raystill.store.importers.answer import RowError
from raystill.store.records import Int32Array
from raystill.text.answer_ids import encode_answer
from raystill.text.chat import ChatFormat

Message = dict[str, Any]


def read_messages(value: Any) -> list[Message]:
    """A conversation as a list of messages. Raises RowError where it isn't one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError("bad_messages", "`messages` is text, not a conversation") from None
    if not isinstance(value, list) or not value:
        raise RowError("bad_messages", "there is no conversation")
    messages = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError("bad_messages", "a message has no role")
        # Parquet fills the keys that a message lacks with null.
        messages.append({name: part for name, part in message.items() if part is not None})
    return messages


def split_answer(messages: list[Message]) -> tuple[list[Message], Message]:
    """The prompt's messages, and the assistant's last one. Raises RowError where the last isn't an answer."""
    *prompt, last = messages
    if last["role"] != "assistant" or not prompt:
        raise RowError("no_answer", "the conversation does not end with an assistant's answer to something")
    return prompt, last


def answer_text(message: Message) -> tuple[str, str | None, str | None]:
    """Content, tool calls (JSON) and reasoning of an answer. Raises RowError where it is empty."""
    content = message.get("content")
    calls = message.get("tool_calls") or None
    if isinstance(content, list):
        content = "".join(
            part.get("text", "") if isinstance(part, dict) and part.get("type") == "text" else ""
            for part in content
        )
    if content is not None and not isinstance(content, str):
        raise RowError("bad_messages", "the answer's content is neither text nor parts of text")
    if not content and not calls:
        raise RowError("empty", "the answer has no text and no tool calls")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if calls is not None and not isinstance(calls, str):
        calls = json.dumps(calls, ensure_ascii=False)
    return content or "", calls, reasoning if isinstance(reasoning, str) else None


def prompt_ids(chat: ChatFormat, messages: list[Message]) -> Int32Array:
    """Ids of the rendered prompt. Raises RowError where the chat template refuses it."""
    try:
        return np.asarray(chat.render_prompt_ids(messages), np.int32)
    except DataError as error:
        raise RowError("template", error.problems[0].what) from None


def completion_ids(chat: ChatFormat, completion: str, finish_reason: str) -> Int32Array:
    """Ids of an answer's text, with the token that ends the turn where it was finished."""
    ending = [chat.turn_end_id] if finish_reason == "stop" else []
    return np.asarray([*chat.encode_completion(completion), *ending], np.int32)


def call_ids(chat: ChatFormat, messages: list[Message], completion: str, calls: str) -> Int32Array:
    """Ids of an answer with tool calls (JSON), as the chat template spells it after the prompt.

    Raises RowError where the template doesn't write calls, or refuses the messages.
    """
    try:
        _, ids = encode_answer(chat, messages, completion, calls, "tool_calls")
    except DataError as error:
        raise RowError("template", error.problems[0].what) from None
    except (ValueError, AttributeError, TypeError):
        raise RowError("bad_calls", "the tool calls are no list of calls") from None
    return np.asarray(ids, np.int32)


def list_of_ids(value: Any, name: str) -> Int32Array:
    """A column of token ids. Raises RowError for anything else."""
    array = np.asarray(value if value is not None else [])
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise RowError("bad_ids", f"`{name}` is not a list of token ids")
    if array.size and not (int(array.min()) >= 0 and int(array.max()) < 2**31):
        raise RowError("bad_ids", f"`{name}` holds ids that no vocabulary has")
    return array.astype(np.int32)
