"""From an endpoint's answer to a `Generation`, or to the failure that it is. Pure."""

from __future__ import annotations

import json

import numpy as np

from raystill.teacher.api.budget import Prices
from raystill.teacher.api.client import Answered
from raystill.teacher.api.outcomes import Failure
from raystill.teacher.api.token_logprobs import MappedCompletion, TokenMap, map_logprobs
from raystill.teacher.api.wire import Message
from raystill.teacher.engine import FinishReason, Generation, GenerationRequest
from raystill.teacher.reasoning import ReasoningMode, split_text

REFUSAL_FLAG = "refusal"
FILTERED_FLAG = "content_filter"
LENGTH_FLAG = "truncated"
UNMAPPED_FLAG = "logprobs_unmapped"
NO_END_FLAG = "no_end_token"
NO_USAGE_FLAG = "usage_estimated"
_FINISH: dict[str | None, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_NO_IDS = np.zeros(0, np.int32)
_OPEN_TAG, _CLOSE_TAG = "<think>", "</think>"


def read_answer(
    request: GenerationRequest,
    answered: Answered,
    prices: Prices,
    *,
    reasoning: ReasoningMode,
    tokens: TokenMap | None = None,
    end_token_ids: tuple[int, ...] = (),
) -> Generation | Failure:
    """The row's generation. An answer without text and without tool calls is a failure, never an empty row.

    Refusals and filtered answers that have text are kept, flagged, with finish_reason content_filter.
    """
    message, choice = answered.choice.message, answered.choice
    usage = prices.priced(answered.usage) if answered.usage is not None else None
    finish = _FINISH.get(choice.finish_reason)
    flags = [] if usage is not None else [NO_USAGE_FLAG]
    if finish is None:
        what = f"the answer has the finish_reason {choice.finish_reason!r}"
        return Failure("retry", "malformed", what, usage=usage, may_be_billed=True)
    thoughts, text = _split_thoughts(message)
    if message.refusal is not None and not text.strip():
        text, finish = message.refusal, "content_filter"
        flags.append(REFUSAL_FLAG)
    if finish == "content_filter" and REFUSAL_FLAG not in flags:
        flags.append(FILTERED_FLAG)
    calls = _tool_calls(message)
    if not text.strip() and calls is None:
        code = "content_filter" if finish == "content_filter" else "empty"
        return Failure("reject", code, _why_empty(answered, thoughts), usage=usage, may_be_billed=True)
    if finish == "length":
        flags.append(LENGTH_FLAG)
    # The endpoint's ids and logprobs cover thoughts and answer, and nothing says where one ends.
    mapped = _mapped(request, answered, None if thoughts else tokens, flags)
    if reasoning == "train" and thoughts:
        text, thoughts = f"{_OPEN_TAG}\n{thoughts}\n{_CLOSE_TAG}\n\n{text}", None
    ids = mapped.token_ids if mapped.token_ids is not None else _NO_IDS
    if mapped.signal is not None and finish == "stop" and ids[-1] not in end_token_ids:
        flags.append(NO_END_FLAG)
    return Generation(
        key=request.key,
        completion_token_ids=ids,
        finish_reason=finish,
        signal=mapped.signal,
        seconds=answered.seconds,
        completion=text,
        reasoning=thoughts if reasoning != "drop" else None,
        tool_calls=calls,
        usage=usage,
        flags=tuple(flags),
    )


def _mapped(
    request: GenerationRequest, answered: Answered, tokens: TokenMap | None, flags: list[str]
) -> MappedCompletion:
    choice = answered.choice
    has_logprobs = choice.logprobs is not None and bool(choice.logprobs.content)
    mapped = MappedCompletion(None, None)
    if tokens is not None:
        mapped = map_logprobs(choice, tokens, max(1, request.num_logprobs))
    if request.num_logprobs and has_logprobs and mapped.signal is None:
        flags.append(UNMAPPED_FLAG)
    return mapped


def _split_thoughts(message: Message) -> tuple[str | None, str]:
    """(thoughts, text): as the endpoint split them, or at the markers where it left them in the text."""
    thoughts, text = message.reasoning_content or message.reasoning, message.content or ""
    if not thoughts and (split := split_text(text)) is not None:
        thoughts, text = split
    return thoughts or None, text


def _tool_calls(message: Message) -> str | None:
    if not message.tool_calls:
        return None
    return json.dumps([json.loads(bytes(call)) for call in message.tool_calls], ensure_ascii=False)


def _why_empty(answered: Answered, thoughts: str | None) -> str:
    if answered.choice.finish_reason == "content_filter":
        return "the endpoint's filter removed the answer"
    if answered.choice.finish_reason == "length" and (thoughts or _reasoning_tokens(answered)):
        return "the thoughts used up max_new_tokens before the answer began"
    return f"no text and no tool call, finish_reason {answered.choice.finish_reason}"


def _reasoning_tokens(answered: Answered) -> int:
    return answered.usage.reasoning_tokens if answered.usage is not None else 0
