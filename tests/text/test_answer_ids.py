"""Answers known as text, in a given model's own tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raystill.errors import DataError
from raystill.text.answer_ids import encode_answer
from raystill.text.chat import ChatFormat

QUESTION = [{"role": "user", "content": "two plus two?"}]
CALLS = json.dumps([{"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}])
WITH_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.a }}]{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_text_ends_with_the_end_of_the_turn_unless_it_was_cut_off(build_tokenizer: Any) -> None:
    chat = ChatFormat(build_tokenizer())
    prompt, answer = encode_answer(chat, QUESTION, "It is four.", None, "stop")
    assert prompt + answer == chat.training_example(QUESTION, "It is four.").input_ids
    _, cut = encode_answer(chat, QUESTION, "It is four.", None, "length")
    assert cut == answer[:-1]


def test_calls_are_spelt_by_the_template(build_tokenizer: Any) -> None:
    chat = ChatFormat(build_tokenizer(chat_template=WITH_CALLS))
    prompt, answer = encode_answer(chat, QUESTION, "", CALLS, "tool_calls")
    assert prompt == chat.render_prompt_ids(QUESTION)
    assert chat.decode(answer, skip_special_tokens=False) == "[add 2]<|im_end|>"
    assert answer[-1] == chat.turn_end_id


def test_a_template_without_calls_is_refused(build_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="does not write tool calls"):
        encode_answer(ChatFormat(build_tokenizer()), QUESTION, "", CALLS, "tool_calls")
