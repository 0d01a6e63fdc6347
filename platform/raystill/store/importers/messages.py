"""Hugging Face `messages` datasets (Parquet or JSONL): answers from elsewhere, to be scored.

A row has `messages` that end with the assistant's answer, or `prompt` and `completion` as TRL spells them,
each a conversation or text. `id`, `split`, `source` are kept where there are any.

A conversation of several turns, such as a trace of tool calls, is one answer per turn of the assistant: each
after everything that stands before it, flagged `earlier_turn` but for the last. Only `messages` are split,
and a turn without text and calls is none. Calls get no ids here: `score` spells them as its model does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raystill.store.importers.answer import BadAnswer, ImportedAnswer, RowError, no_ids
from raystill.store.importers.conversation import (
    answer_text,
    completion_ids,
    list_of_ids,
    prompt_ids,
    read_messages,
    split_answer,
)
from raystill.store.importers.files import Record, iter_answers
from raystill.text.chat import ChatFormat

_SPLITS = ("train", "eval")


def iter_messages(paths: Sequence[Path], chat: ChatFormat | None) -> Iterator[ImportedAnswer | BadAnswer]:
    """One answer per turn of the assistant. Without a tokenizer only text is stored."""

    def read(record: Record, where: str) -> Iterator[ImportedAnswer]:
        last = _read_row(record, where, chat)
        has_turns = record.get("messages") is not None
        # All before any: a row is bad as a whole, or not.
        yield from [*(_earlier_turns(record, where, chat) if has_turns else ()), last]

    return iter_answers(paths, read)


def _read_row(record: Record, where: str, chat: ChatFormat | None) -> ImportedAnswer:
    prompt, message = split_answer(_conversation(record))
    completion, calls, reasoning = answer_text(message)
    finish_reason = text_of(record, "finish_reason") or "stop"
    return ImportedAnswer(
        where=where,
        messages=prompt,
        completion=completion,
        prompt_token_ids=_ids(record, "prompt_token_ids") if chat is None else prompt_ids(chat, prompt),
        completion_token_ids=(
            _ids(record, "completion_token_ids")
            if chat is None
            else no_ids()
            if calls
            else completion_ids(chat, completion, finish_reason)
        ),
        finish_reason=finish_reason,
        tool_calls=text_of(record, "tool_calls") or calls,
        reasoning=text_of(record, "reasoning") or reasoning,
        sample_index=int_of(record, "sample_index"),
        **provenance(record),
    )


def _earlier_turns(record: Record, where: str, chat: ChatFormat | None) -> Iterator[ImportedAnswer]:
    """The assistant's turns before the last one; the facts of the row belong to the last."""
    messages = read_messages(record["messages"])
    facts = provenance(record)
    for index, message in enumerate(messages[:-1]):
        has_answer = message.get("content") or message.get("tool_calls")
        if index == 0 or message["role"] != "assistant" or not has_answer:
            continue
        completion, calls, reasoning = answer_text(message)
        prompt = messages[:index]
        yield ImportedAnswer(
            where=where,
            messages=prompt,
            completion=completion,
            prompt_token_ids=no_ids() if chat is None else prompt_ids(chat, prompt),
            completion_token_ids=(
                no_ids() if chat is None or calls else completion_ids(chat, completion, "stop")
            ),
            tool_calls=calls,
            reasoning=reasoning,
            flags=("earlier_turn",),
            **facts | {"prompt_id": facts["prompt_id"] and f"{facts['prompt_id']}#{index}"},
        )


def provenance(record: Record) -> dict[str, Any]:
    """`prompt_id`, `split` and `source` of a row, as far as it names them."""
    split = text_of(record, "split")
    return {
        "prompt_id": text_of(record, "prompt_id") or text_of(record, "id"),
        "split": split if split in _SPLITS else None,
        "source": text_of(record, "source"),
    }


def text_of(record: Record, name: str) -> str | None:
    """A text of the row, None where it has none."""
    value = record.get(name)
    return value if isinstance(value, str) and value else None


def int_of(record: Record, name: str) -> int:
    """A number of the row, 0 where it has none."""
    value = record.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _conversation(record: Record) -> list[dict[str, Any]]:
    if record.get("messages") is not None:
        return read_messages(record["messages"])
    if record.get("prompt") is None or record.get("completion") is None:
        raise RowError("no_messages", "the row has neither `messages` nor `prompt` and `completion`")
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return read_messages([*read_messages(prompt), *read_messages(completion)])


def _ids(record: Record, name: str) -> Any:
    return list_of_ids(record[name], name) if record.get(name) is not None else no_ids()
