"""Where a prompt's earlier assistant turns stand among its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raystill.text.chat import ChatFormat


def find_assistant_turns(
    chat: ChatFormat, messages: Sequence[Mapping[str, Any]], prompt_ids: Sequence[int]
) -> list[int] | None:
    """Places in `prompt_ids` that an assistant wrote, each turn with the token that ends it; rising.

    A turn is what follows the rendering of the messages before it, assistant's header included. None where
    that isn't a prefix of the prompt: a template that rewrites earlier turns, or tokens that merge across.
    """
    places: list[int] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = chat.render_prompt_ids(messages[:number])
        through = chat.render_prompt_ids(messages[: number + 1], add_generation_prompt=False)
        start, stop = len(before), len(through)
        if list(prompt_ids[:start]) != before or list(prompt_ids[start:stop]) != through[start:]:
            return None
        ends = [place for place in range(start, stop) if through[place] in chat.eos_token_ids]
        places += range(start, ends[0] + 1 if ends else stop)
    return places
