from __future__ import annotations

import pytest

from raystill.bench.random_teacher import build_random_teacher
from raystill.text.assistant_turns import find_assistant_turns
from raystill.text.chat import ChatFormat, load_chat_format

TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "second"},
    {"role": "user", "content": "three?"},
]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    return load_chat_format(str(build_random_teacher(tmp_path_factory.mktemp("model"))))


def test_turns_are_what_an_assistant_wrote_with_their_ends(chat: ChatFormat) -> None:
    ids = chat.render_prompt_ids(TALK)
    places = find_assistant_turns(chat, TALK, ids)
    assert places is not None
    text = chat.decode([ids[place] for place in places], skip_special_tokens=False)
    assert text == "first answer<|im_end|>second<|im_end|>"


def test_a_talk_without_earlier_answers_has_none(chat: ChatFormat) -> None:
    assert find_assistant_turns(chat, TALK[:2], chat.render_prompt_ids(TALK[:2])) == []


def test_tokens_that_another_template_wrote_are_not_guessed_at(chat: ChatFormat) -> None:
    """I23."""
    ids = [5, *chat.render_prompt_ids(TALK)]
    assert find_assistant_turns(chat, TALK, ids) is None
