"""Token ids of a prompt and its answer, as a given teacher would have read and written them.

For answers that are known as text, or in another teacher's tokens. Text is tokenised and ends with the token
that ends a turn. An answer with tool calls is spelt by the chat template, which alone knows how its model
writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from raystill.errors import DataError
from raystill.text.chat import ChatFormat

_COMPLETE = ("stop", "tool_calls")


def encode_answer(
    chat: ChatFormat,
    messages: Sequence[Mapping[str, Any]],
    completion: str,
    tool_calls: str | None,
    finish_reason: str,
    *,
    add_generation_prompt: bool = True,
) -> tuple[list[int], list[int]]:
    """Ids of the prompt (`messages`) and of its answer; `tool_calls` is JSON in OpenAI's form.

    An answer that was cut off has no end. Raises DataError where the template refuses the messages, or
    doesn't write the calls.
    """
    prompt_ids = chat.render_prompt_ids(messages, add_generation_prompt)
    if tool_calls is not None:
        return prompt_ids, chat.encode(_spell_calls(chat, messages, completion, tool_calls))
    ending = [chat.turn_end_id] if finish_reason in _COMPLETE else []
    return prompt_ids, [*chat.encode_completion(completion), *ending]


def _spell_calls(
    chat: ChatFormat, messages: Sequence[Mapping[str, Any]], completion: str, tool_calls: str
) -> str:
    """What the template writes after the prompt, up to the end of the turn."""
    calls = [_with_object(call) for call in json.loads(tool_calls)]
    answer: dict[str, Any] = {"role": "assistant", "content": completion, "tool_calls": calls}
    prompt = chat.render_text(messages)
    whole = chat.render_text([*messages, answer], add_generation_prompt=False)
    plain = chat.render_text([*messages, answer | {"tool_calls": []}], add_generation_prompt=False)
    if not whole.startswith(prompt) or whole == plain:
        raise DataError(
            "the chat template does not write tool calls after the prompt",
            where=f"tokenizer {chat.tokenizer.name_or_path}",
            fix="score with a teacher whose template writes tool calls, or leave these answers out",
        )
    end = chat.tokenizer.convert_ids_to_tokens(chat.turn_end_id)
    text, found, _ = whole[len(prompt) :].rpartition(end)
    return text + found


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves, so they take an object; APIs send text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
