"""Output files of OpenAI's Batch API and of vLLM's `run_batch`, joined with their input files by custom_id.

The input files hold the prompts and the sampling; they are indexed, not held in memory. Error lines, answers
without text and answers whose request is unknown become rejects. Logprobs become a signal where their tokens
are ids ("token_id:N", vLLM's `return_tokens_as_token_ids`) or a tokenizer knows them; where they can't be
read, the text is stored without a signal and the row's flags say why. An answer with tool calls has ids only
where the file brings them (`token_ids`): else `score` spells the calls as its model does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raystill.errors import DataError
from raystill.store.importers.answer import BadAnswer, ImportedAnswer, RowError, no_ids, place
from raystill.store.importers.conversation import (
    answer_text,
    completion_ids,
    list_of_ids,
    prompt_ids,
    read_messages,
)
from raystill.store.importers.files import MAX_LINE_BYTES, Record, iter_answers
from raystill.store.importers.messages import provenance
from raystill.store.importers.signal import (
    BOUND_FLAG,
    build_signal,
    entry_token_id,
    read_entries,
)
from raystill.store.records import Int32Array, TopKSignal
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import token_bytes

_FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter"}
# Keys of a request's body that say nothing about how the answer is drawn.
_NOT_SAMPLING = {
    "messages", "model", "n", "stream", "stream_options", "logprobs", "top_logprobs", "seed", "metadata",
    "user", "return_tokens_as_token_ids", "return_token_ids",
}  # fmt: skip


class BatchInputs:
    """Requests of batch input files, found by custom_id and read from the disk when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Index the files. Raises DataError for a missing file and for a custom_id that stands twice."""
        self._paths = list(paths)
        self._places: dict[str, tuple[int, int]] = {}
        for index, path in enumerate(self._paths):
            self._index(index, path)

    def body(self, custom_id: str) -> Record:
        """The body of one request. Raises RowError where there is none."""
        found = self._places.get(custom_id)
        if found is None:
            raise RowError("no_request", f"no input file has the custom_id {custom_id!r}")
        with self._paths[found[0]].open("rb") as stream:
            stream.seek(found[1])
            body = json.loads(stream.readline()).get("body")
        if not isinstance(body, dict):
            raise RowError("no_request", "the request has no body")
        return body

    def _index(self, index: int, path: Path) -> None:
        try:
            stream = path.open("rb")
        except OSError as error:
            raise DataError(
                f"the file can't be read: {error.strerror}", where=str(path), fix="check --input"
            ) from error
        with stream:
            offset = number = 0
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if line.strip():
                    self._add(_custom_id(line, place(path, number)), (index, offset), place(path, number))
                offset += len(line)

    def _add(self, custom_id: str, found: tuple[int, int], where: str) -> None:
        if custom_id in self._places:
            raise DataError(
                f"the custom_id {custom_id!r} stands twice in the input files",
                where=where,
                fix="import each batch by itself, with its own input file",
            )
        self._places[custom_id] = found


def iter_openai_batch(
    paths: Sequence[Path], inputs: Sequence[Path], chat: ChatFormat | None
) -> Iterator[ImportedAnswer | BadAnswer]:
    """One answer per choice of every line. Raises DataError for files that can't be read."""
    token_ids = None if chat is None else unique_tokens(chat)
    read = partial(_read_line, requests=BatchInputs(inputs), chat=chat, token_ids=token_ids)
    return iter_answers(paths, read)


def unique_tokens(chat: ChatFormat) -> dict[bytes, int]:
    """Bytes to id, without the bytes that several ids stand for."""
    found: dict[bytes, int] = {}
    twice: set[bytes] = set()
    for token_id, (content, _) in token_bytes(chat.tokenizer).items():
        if content in found:
            twice.add(content)
        found[content] = token_id
    return {content: token_id for content, token_id in found.items() if content not in twice}


def _read_line(
    record: Record,
    where: str,
    *,
    requests: BatchInputs,
    chat: ChatFormat | None,
    token_ids: dict[bytes, int] | None,
) -> Iterator[ImportedAnswer | BadAnswer]:
    custom_id = record.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise RowError("no_custom_id", "the line has no custom_id")
    answer = _answer_body(record)
    request = requests.body(custom_id)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise RowError("no_choices", "the response has no choices")
    messages = read_messages(request.get("messages"))
    usage = answer.get("usage")
    metadata = request.get("metadata")
    names = provenance({"id": custom_id} | (metadata if isinstance(metadata, dict) else {}))
    for position, choice in enumerate(choices):
        try:
            facts = _read_choice(choice, answer, chat, token_ids, messages)
        except RowError as error:
            content = f"{custom_id}\0{position}\0{json.dumps(choice, sort_keys=True)}"
            yield BadAnswer(where, error.code, error.reason, content, str(names["prompt_id"]))
            continue
        index = choice.get("index")
        yield ImportedAnswer(
            where=where,
            messages=messages,
            sampling={name: value for name, value in request.items() if name not in _NOT_SAMPLING},
            seed=request["seed"] if isinstance(request.get("seed"), int) else 0,
            sample_index=index if isinstance(index, int) else position,
            # An answer's usage covers all of its choices: it stands with the first.
            usage=json.dumps(usage) if isinstance(usage, dict) and position == 0 else None,
            **facts,
            **names,
        )


def _answer_body(record: Record) -> Record:
    response, error = record.get("response"), record.get("error")
    if not isinstance(response, dict):
        raise RowError("request_failed", _error_text(error))
    status, body = response.get("status_code"), response.get("body")
    if status != 200:
        raise RowError(f"http_{status}", _error_text(body if isinstance(body, dict) else error))
    if not isinstance(body, dict) or body.get("error"):
        raise RowError("error_with_200", _error_text(body))
    return body


def _read_choice(
    choice: Any,
    answer: Record,
    chat: ChatFormat | None,
    token_ids: dict[bytes, int] | None,
    messages: list[dict[str, Any]],
) -> dict[str, Any]:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise RowError("not_a_chat", "the choice has no message; only /v1/chat/completions is read")
    reason = choice.get("finish_reason")
    if message.get("refusal"):
        raise RowError("refusal", str(message["refusal"])[:200])
    if reason not in _FINISH_REASONS:
        raise RowError("finish_reason", f"the answer ended by {reason!r}")
    completion, calls, reasoning = answer_text(message)
    prompt = list_of_ids(answer.get("prompt_token_ids"), "prompt_token_ids")
    tokens, signal, flags = _read_tokens(choice, token_ids)
    if calls is not None and len(tokens) and not (choice.get("token_ids") or _covers(answer, len(tokens))):
        tokens, signal, flags = no_ids(), None, ("logprobs_without_calls",)
    if len(tokens) == 0 and chat is not None and calls is None and reasoning is None:
        tokens = completion_ids(chat, completion, reason)
    return {
        "completion": completion,
        "tool_calls": calls,
        "reasoning": reasoning,
        "finish_reason": reason,
        "prompt_token_ids": prompt if len(prompt) or chat is None else prompt_ids(chat, messages),
        "completion_token_ids": tokens,
        "signal": signal,
        "flags": flags,
    }


def _covers(answer: Record, num_tokens: int) -> bool:
    """Whether so many logprobs cover a whole answer with calls: most endpoints give those of the text."""
    usage, choices = answer.get("usage"), answer.get("choices")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return counted == num_tokens and isinstance(choices, list) and len(choices) == 1


def _read_tokens(
    choice: Record, token_ids: dict[bytes, int] | None
) -> tuple[Int32Array, TopKSignal | None, tuple[str, ...]]:
    """Token ids, signal and flags of a choice, as far as it brings them."""
    tokens = list_of_ids(choice.get("token_ids"), "token_ids")
    logprobs = choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not entries:
        return tokens, None, ()
    try:
        if not len(tokens):
            named = [entry_token_id(entry, token_ids, number) for number, entry in enumerate(entries)]
            tokens = np.asarray(named, np.int32)
        if not entries[0].get("top_logprobs"):
            return tokens, None, ()
        ids_TK, logprobs_TK = read_entries([entry.get("top_logprobs") for entry in entries], token_ids)
        sampled_T = np.array([float(entry["logprob"]) for entry in entries])
        signal, is_bound = build_signal(ids_TK, logprobs_TK, tokens, sampled_T)
    except RowError as error:
        return tokens, None, (f"logprobs_{error.code}",)
    except (AttributeError, KeyError, TypeError, ValueError):
        return no_ids(), None, ("logprobs_malformed",)
    return tokens, signal, (BOUND_FLAG,) if is_bound else ()


def _custom_id(line: bytes, where: str) -> str:
    try:
        custom_id = json.loads(line)["custom_id"]
    except (ValueError, KeyError, TypeError):
        custom_id = None
    if not isinstance(custom_id, str):
        raise DataError("the line is no batch request: it has no custom_id", where=where, fix="check --input")
    return custom_id


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        inner = error.get("error")
        error = inner if isinstance(inner, dict) else error
        error = error.get("message") or error.get("code") or error
    return str(error)[:500] if error else "the request failed, and the file does not say why"
