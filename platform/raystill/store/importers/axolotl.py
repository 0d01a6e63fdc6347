"""Axolotl's offline distillation datasets (JSONL or Parquet): a conversation and its answer's logprobs.

A row has `messages` (or `messages_combined`) that end with the answer, and one list of logprobs per token of
the answer: `logprobs` (or `llm_text_generation_vllm_logprobs`) with entries `{"token": "token_id:N",
"logprob": x}`, or bare numbers with their ids in `target_token_ids`. Which token stands at each position the
format doesn't say: it comes from `completion_token_ids` (our export writes them) or from the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raystill.store.importers.answer import BadAnswer, ImportedAnswer, RowError, no_ids
from raystill.store.importers.conversation import (
    Message,
    answer_text,
    call_ids,
    completion_ids,
    list_of_ids,
    prompt_ids,
    read_messages,
    split_answer,
)
from raystill.store.importers.files import Record, iter_answers
from raystill.store.importers.messages import int_of, provenance, text_of
from raystill.store.importers.signal import BOUND_FLAG, Float64Array, build_signal, read_entries
from raystill.store.records import Int32Array
from raystill.text.chat import ChatFormat

MESSAGE_FIELDS = ("messages", "messages_combined")
LOGPROB_FIELDS = ("logprobs", "llm_text_generation_vllm_logprobs")
TARGET_FIELD = "target_token_ids"


def iter_axolotl(paths: Sequence[Path], chat: ChatFormat | None) -> Iterator[ImportedAnswer | BadAnswer]:
    """One answer per row. Raises DataError for files that can't be read."""

    def read(record: Record, where: str) -> Iterator[ImportedAnswer]:
        yield _read_row(record, where, chat)

    return iter_answers(paths, read)


def _read_row(record: Record, where: str, chat: ChatFormat | None) -> ImportedAnswer:
    prompt, message = split_answer(read_messages(_first(record, MESSAGE_FIELDS)))
    completion, calls, reasoning = answer_text(message)
    positions = _first(record, LOGPROB_FIELDS)
    if not isinstance(positions, list) or not positions:
        raise RowError("no_logprobs", "the row has no logprobs")
    finish_reason = text_of(record, "finish_reason") or "stop"
    tokens = _tokens(record, chat, prompt, message, finish_reason)
    # Entries beyond the answer stand for what the chat template writes after it.
    positions = positions[: len(tokens)]
    targets = record.get(TARGET_FIELD)
    ids_TK, logprobs_TK = (
        read_entries(positions, None)
        if targets is None
        else _plain_entries(positions, targets[: len(tokens)])
    )
    sampled = record.get("sampled_logprobs")
    given_T = None if sampled is None else np.asarray(sampled, np.float64)
    if given_T is not None and given_T.shape != tokens.shape:
        raise RowError("misaligned", f"{given_T.size} sampled logprobs for {len(tokens)} tokens")
    signal, is_bound = build_signal(ids_TK, logprobs_TK, tokens, given_T)
    brought = record.get("prompt_token_ids")
    if brought is not None:
        asked = list_of_ids(brought, "prompt_token_ids")
    else:
        asked = no_ids() if chat is None else prompt_ids(chat, prompt)
    return ImportedAnswer(
        where=where,
        messages=prompt,
        completion=completion,
        prompt_token_ids=asked,
        completion_token_ids=tokens,
        finish_reason=finish_reason,
        signal=signal,
        sample_index=int_of(record, "sample_index"),
        reasoning=text_of(record, "reasoning") or reasoning,
        tool_calls=text_of(record, "tool_calls") or calls,
        flags=(BOUND_FLAG,) if is_bound else (),
        **provenance(record),
    )


def _tokens(
    record: Record,
    chat: ChatFormat | None,
    prompt: list[Message],
    message: Message,
    finish_reason: str,
) -> Int32Array:
    """Ids of the answer: the row's own, else its text's, with the calls as the chat template spells them."""
    if record.get("completion_token_ids") is not None:
        return list_of_ids(record["completion_token_ids"], "completion_token_ids")
    if chat is None:
        raise RowError("no_tokens", "which token stands where is not stored: give the teacher's --tokenizer")
    completion, calls, _ = answer_text(message)
    tokens = (
        completion_ids(chat, completion, finish_reason)
        if calls is None
        else call_ids(chat, prompt, completion, calls)
    )
    positions = _first(record, LOGPROB_FIELDS)
    if len(positions) == len(tokens) - 1 and finish_reason in ("stop", "tool_calls"):
        return tokens[:-1]  # logprobs without the token that ended the answer
    return tokens


def _plain_entries(positions: list[Any], targets: Any) -> tuple[Int32Array, Float64Array]:
    if not isinstance(targets, list) or len(targets) != len(positions):
        raise RowError("misaligned", f"`{TARGET_FIELD}` and the logprobs have different lengths")
    try:
        K = min(min(len(row) for row in positions), min(len(row) for row in targets))
        logprobs_TK = np.array([row[:K] for row in positions], np.float64)
        ids_TK = np.array([row[:K] for row in targets])
    except (TypeError, ValueError):
        raise RowError("no_logprobs", "a token's logprobs are no list of numbers") from None
    if K == 0 or ids_TK.dtype.kind not in "iu":
        raise RowError("no_logprobs", "a token has no logprobs")
    return list_of_ids(ids_TK.reshape(-1), TARGET_FIELD).reshape(ids_TK.shape), logprobs_TK


def _first(record: Record, names: tuple[str, ...]) -> Any:
    for name in names:
        if record.get(name) is not None:
            return record[name]
    return None
