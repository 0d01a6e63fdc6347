"""Before the first step: what a student trains on must be what a server will show it.

The server renders the messages with the student's own template and appends what the model samples. Rows that
keep the ids of the store were rendered elsewhere and earlier, so a few of them are rendered again here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from raystill.errors import DataError
from raystill.store.records import TeacherRow
from raystill.text.chat import ChatFormat

CHECKED_ROWS = 16
_AROUND = 4


def check_rendering(chat: ChatFormat, rows: Sequence[TeacherRow]) -> None:
    """Raise DataError, with the first differing token, if a stored prompt is not what `chat` renders now.

    A prompt may end with or without the assistant's header: whoever asked the teacher decided that.
    """
    for row in rows[:CHECKED_ROWS]:
        messages = json.loads(row.messages)
        stored = row.prompt_token_ids.tolist()
        rendered = chat.render_prompt_ids(messages)
        if stored == rendered or stored == chat.render_prompt_ids(messages, add_generation_prompt=False):
            continue
        place = first_difference(stored, rendered)
        raise DataError(
            f"the stored prompt is not what the student will be served: they differ from token {place} on: "
            f"{_show(chat, stored, place)} in the store, {_show(chat, rendered, place)} from the template",
            where=f"row {row.key}",
            fix="give the student the chat template (and the tools) that the teacher was asked with, or "
            "generate again",
        )


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    """The first place where two sequences differ; the shorter one's length where it is a prefix."""
    shared = min(len(left), len(right))
    differing = np.flatnonzero(np.asarray(left[:shared]) != np.asarray(right[:shared]))
    return int(differing[0]) if len(differing) else shared


def _show(chat: ChatFormat, ids: Sequence[int], place: int) -> str:
    window = list(ids[max(place - 1, 0) : place + _AROUND])
    return repr(" ".join(str(token) for token in chat.tokenizer.convert_ids_to_tokens(window)) or "the end")
