"""The held-out rows as a model that was trained on them reads them.

A student with its teacher's tokens and template takes prompts and answers as the store has them; one that has
all of the teacher's tokens under other numbers takes them renamed. A closed teacher's are text, and another
student has other tokens: then both are rendered as in its training and by whoever serves it, and what a
teacher said of other tokens is no signal for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.store.records import TeacherRow, TopKSignal
from raystill.store.signal_ids import fold_into_tail
from raystill.text.answer_ids import encode_answer
from raystill.text.chat import ChatFormat, generation_eos_token_ids
from raystill.text.token_match import StoredTokens, TokenDifference, TokenMatch, match_stored
from raystill.text.tool_schema import offer_tools
from raystill.text.vocabulary import MISSING, VocabularyMap

_Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class OwnTokens:
    """A model's chat format, how many logits it has, and how its tokens relate to the stored ones."""

    chat: ChatFormat
    vocab_size: int
    match: TokenMatch


def relate_tokens(
    directory: Path, tokenizer: Any, vocab_size: int, config: Config, stored: StoredTokens
) -> OwnTokens:
    """The tokens of the model in `directory`, offered the tools that it was trained with.

    Raises ConfigError or RemoteError for a teacher's tokenizer that can't be loaded.
    """
    chat = ChatFormat(tokenizer, generation_eos_token_ids(str(directory.resolve())))
    chat = offer_tools(chat, config.teacher.base.tool_schema)
    found = match_stored(stored, chat, config.teacher.open, translates=True)
    if isinstance(found, TokenDifference):
        found = TokenMatch(same_ids=False, same_template=found.same_template)
    return OwnTokens(chat, vocab_size, found)


def read_in_own_tokens(rows: Sequence[TeacherRow], own: OwnTokens) -> list[TeacherRow]:
    """The rows in the model's tokens, in the order of `rows`; without a signal where it is for others.

    Raises DataError where the template refuses the messages. An answer that it can't write, such as tool
    calls of another kind, is left out of its row.
    """
    return [_read(row, own) for row in rows]


def _read(row: TeacherRow, own: OwnTokens) -> TeacherRow:
    answer = _keep_answer(row, own)
    if answer is not None and own.match.same_template:
        return answer
    messages = json.loads(row.messages)
    if answer is not None:
        return replace(answer, prompt_token_ids=_ids(own.chat.render_prompt_ids(messages)))
    try:
        asked, answered = encode_answer(own.chat, messages, row.completion, row.tool_calls, row.finish_reason)
    except DataError:
        asked, answered = own.chat.render_prompt_ids(messages), []
    return replace(row, prompt_token_ids=_ids(asked), completion_token_ids=_ids(answered), signal=None)


def _keep_answer(row: TeacherRow, own: OwnTokens) -> TeacherRow | None:
    """The row with its answer's ids in the model's numbers; None where it has none, or none for all of it."""
    if not own.match.same_ids or not len(row.prompt_token_ids) or not len(row.completion_token_ids):
        return None
    signal, ids = row.signal, row.completion_token_ids
    if own.match.translation is not None:
        ids = own.match.translation.translate(ids)
        signal = None if signal is None else _translate(signal, own.match.translation)
    if int(ids.max()) == MISSING:
        return None
    signal = None if signal is None else fold_into_tail(signal, own.vocab_size)
    return replace(row, completion_token_ids=ids, signal=signal)


def _translate(signal: TopKSignal, translation: VocabularyMap) -> TopKSignal:
    return replace(signal, topk_ids_TK=translation.translate(signal.topk_ids_TK))


def _ids(token_ids: Sequence[int]) -> _Ids:
    return np.array(token_ids, dtype=np.int32)
