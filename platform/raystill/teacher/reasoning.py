"""A reasoning teacher's thoughts, told from its answer by the markers between them.

`teacher.base.reasoning` decides what a row keeps:

    train   nothing is split: thoughts, markers and answer are the completion, with all tokens and signals
    keep    `reasoning` holds the thoughts as text; completion, token ids and signal hold the answer alone
    drop    as `keep`, but the thoughts are not stored

Token ids and signal are cut at the same place, so entry t still belongs to answer token t. Each entry is what
that token was drawn from, given the prompt, the thoughts and the answer before it: a student that never sees
the thoughts learns from a better informed teacher. What `score` adds later is conditioned on the prompt and
the answer alone. A completion that ends within its thoughts has no answer, and is rejected
(`reasoning_unfinished`), except under `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from raystill.store.records import Int32Array, TopKSignal
from raystill.text.chat import ChatFormat

ReasoningMode = Literal["drop", "keep", "train"]

# The pairs that open models write; where a tokenizer has one as single tokens, ids alone tell them apart.
_PAIRS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
_OPENING_TOKENS = 8


@dataclass(frozen=True)
class ReasoningMarkers:
    """What stands before and after the thoughts, with token ids where the markers are single tokens."""

    start: str
    end: str
    start_id: int | None
    end_id: int | None


@dataclass(frozen=True)
class Thoughts:
    """The thoughts' text, and the number of tokens before the answer; `finished` is whether there is one."""

    text: str
    num_tokens: int
    finished: bool


def find_markers(chat: ChatFormat) -> ReasoningMarkers | None:
    """The markers of a teacher: single tokens of its vocabulary, or spelt out in its chat template."""
    vocabulary = chat.tokenizer.get_vocab()
    for start, end in _PAIRS:
        if end in vocabulary:
            return ReasoningMarkers(start, end, vocabulary.get(start), vocabulary[end])
    template = str(chat.tokenizer.chat_template)
    for start, end in _PAIRS:
        if end in template:
            return ReasoningMarkers(start, end, None, None)
    return None


def split_thoughts(
    markers: ReasoningMarkers,
    prompt_token_ids: Int32Array,
    completion_token_ids: Int32Array,
    decode: Callable[[Sequence[int]], str],
) -> Thoughts | None:
    """The thoughts before a completion's answer, None where it has none. `decode` keeps special tokens.

    A chat template may open the thoughts itself, so a completion may hold the end marker only.
    """
    ids: list[int] = completion_token_ids.tolist()
    after = _after_marker(markers.end, markers.end_id, ids, decode)
    if after is not None:
        while after < len(ids) and not decode([ids[after]]).strip():
            after += 1
        text = decode(ids[:after]).partition(markers.end)[0]
        return Thoughts(_without(text, markers.start), after, finished=True)
    opening = prompt_token_ids[-_OPENING_TOKENS:].tolist()
    opened = decode(opening).rpartition(markers.end)[2] if opening else ""
    if markers.start in opened or _after_marker(markers.start, markers.start_id, ids, decode) is not None:
        return Thoughts(_without(decode(ids), markers.start), len(ids), finished=False)
    return None


def split_text(text: str) -> tuple[str, str] | None:
    """Thoughts and answer of a completion that is known as text only, None where it has no thoughts."""
    for start, end in _PAIRS:
        if text.lstrip().startswith(start) and end in text:
            thoughts, _, answer = text.partition(end)
            return _without(thoughts, start), answer.lstrip()
    return None


def cut_signal(signal: TopKSignal, start: int) -> TopKSignal:
    """The signal of the tokens from `start` on."""
    return TopKSignal(
        topk_ids_TK=signal.topk_ids_TK[start:],
        topk_logprobs_TK=signal.topk_logprobs_TK[start:],
        sampled_logprob_T=signal.sampled_logprob_T[start:],
        tail_logprob_T=signal.tail_logprob_T[start:],
    )


def _after_marker(
    marker: str, marker_id: int | None, ids: list[int], decode: Callable[[Sequence[int]], str]
) -> int | None:
    """The number of tokens up to and with the first marker, None where there is none."""
    if marker_id is not None:
        return ids.index(marker_id) + 1 if marker_id in ids else None
    if marker not in decode(ids):
        return None
    low, high = 1, len(ids)
    while low < high:  # a text that holds the marker still holds it when tokens are added
        middle = (low + high) // 2
        low, high = (low, middle) if marker in decode(ids[:middle]) else (middle + 1, high)
    return low


def _without(text: str, start: str) -> str:
    return text.replace(start, "", 1).strip()
