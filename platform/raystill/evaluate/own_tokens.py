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
from raystill.text.tokenizer import (
    chat_template_sha256,
    compare_tokenizers,
    load_tokenizer,
    tokenizer_sha256,
)
from raystill.text.tool_schema import offer_tools
from raystill.text.vocabulary import MISSING, VocabularyMap, map_vocabulary

_Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class StoredTokens:
    """Whose tokens stored rows are in, and whose template rendered their prompts; "" where they are text."""

    tokenizer_sha256: str
    chat_template_sha256: str


@dataclass(frozen=True)
class OwnTokens:
    """How a model's tokens relate to the stored ones.

    `same_ids`: stored ids mean the same to it; `translation`, where there is one, says them in its numbers.
    `same_template`: its own template renders the prompts as they are stored. `vocab_size` counts its logits.
    """

    chat: ChatFormat
    vocab_size: int
    same_ids: bool = False
    same_template: bool = False
    translation: VocabularyMap | None = None


def relate_tokens(
    directory: Path, tokenizer: Any, vocab_size: int, config: Config, stored: StoredTokens
) -> OwnTokens:
    """The tokens of the model in `directory`, offered the tools that it was trained with.

    Raises ConfigError or RemoteError for a teacher's tokenizer that can't be loaded.
    """
    chat = ChatFormat(tokenizer, generation_eos_token_ids(str(directory.resolve())))
    chat = offer_tools(chat, config.teacher.base.tool_schema)
    same_template = (chat_template_sha256(tokenizer) or "") == stored.chat_template_sha256
    if not stored.tokenizer_sha256:
        return OwnTokens(chat, vocab_size)
    if tokenizer_sha256(tokenizer) == stored.tokenizer_sha256:
        return OwnTokens(chat, vocab_size, same_ids=True, same_template=same_template)
    if config.teacher.open is None:
        return OwnTokens(chat, vocab_size)
    model, options = config.teacher.open.model, config.teacher.open.tokenizer
    teacher = load_tokenizer(model.name, model.revision, model.trust_remote_code, options.use_fast)
    if tokenizer_sha256(teacher) != stored.tokenizer_sha256:
        return OwnTokens(chat, vocab_size)
    if compare_tokenizers(teacher, tokenizer).compatible:
        return OwnTokens(chat, vocab_size, same_ids=True, same_template=same_template)
    translation = map_vocabulary(teacher, tokenizer)
    if not translation.is_complete:
        return OwnTokens(chat, vocab_size)
    if teacher.eos_token_id is not None:
        translation = translation.with_pair(int(teacher.eos_token_id), chat.turn_end_id)
    return OwnTokens(chat, vocab_size, same_ids=True, translation=translation)


def read_in_own_tokens(rows: Sequence[TeacherRow], own: OwnTokens) -> list[TeacherRow]:
    """The rows in the model's tokens, in the order of `rows`; without a signal where it is for others.

    Raises DataError where the template refuses the messages. An answer that it can't write, such as tool
    calls of another kind, is left out of its row.
    """
    return [_read(row, own) for row in rows]


def _read(row: TeacherRow, own: OwnTokens) -> TeacherRow:
    answer = _keep_answer(row, own)
    if answer is not None and own.same_template:
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
    if not own.same_ids or not len(row.prompt_token_ids) or not len(row.completion_token_ids):
        return None
    signal, ids = row.signal, row.completion_token_ids
    if own.translation is not None:
        ids = own.translation.translate(ids)
        signal = None if signal is None else _translate(signal, own.translation)
    if int(ids.max()) == MISSING:
        return None
    signal = None if signal is None else fold_into_tail(signal, own.vocab_size)
    return replace(row, completion_token_ids=ids, signal=signal)


def _translate(signal: TopKSignal, translation: VocabularyMap) -> TopKSignal:
    return replace(signal, topk_ids_TK=translation.translate(signal.topk_ids_TK))


def _ids(token_ids: Sequence[int]) -> _Ids:
    return np.array(token_ids, dtype=np.int32)
