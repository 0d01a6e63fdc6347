"""An endpoint's logprobs as token ids and a signal.

Shape letters: T completion tokens, K stored logprobs. Ids come from vLLM's `token_id:N`, or from a token's
bytes where the served model's tokenizer is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raystill.store.precision import keep_signal
from raystill.store.records import Int32Array, TopKSignal
from raystill.teacher.api.wire import Choice, TokenLogprob, TopLogprob
from raystill.text.tokenizer import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ID_PREFIX = "token_id:"


class TokenMap:
    """From an endpoint's tokens to ids of the tokenizer. Bytes that several plain ids share map to none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        plain: dict[bytes, int | None] = {}
        self._special: dict[bytes, int] = {}
        meanings = token_bytes(tokenizer)
        self._ids = frozenset(meanings)
        for index, (content, is_special) in meanings.items():
            if is_special:
                self._special[content] = index
            else:
                plain[content] = None if content in plain else index
        self._plain = plain

    def id_of(self, entry: TokenLogprob | TopLogprob) -> int | None:
        """The id of one token, or None where it is unknown or ambiguous."""
        if entry.token.startswith(_ID_PREFIX):
            digits = entry.token[len(_ID_PREFIX) :]
            return int(digits) if digits.isdecimal() else None
        try:
            content = bytes(entry.bytes) if entry.bytes is not None else entry.token.encode("utf-8")
        except ValueError:
            return None
        found = self._plain.get(content)
        return self._special.get(content) if found is None and content not in self._plain else found


@dataclass(frozen=True)
class MappedCompletion:
    """Ids of a completion (T) and its signal; both None where a token has no id."""

    token_ids: Int32Array | None
    signal: TopKSignal | None


def map_logprobs(choice: Choice, tokens: TokenMap, num_logprobs: int) -> MappedCompletion:
    """The signal of a completion: the `num_logprobs` best tokens of every position, as far as they came.

    A server that puts the sampled token in the place of the last of the best leaves it there: the stored
    tokens and the tail stay a proper distribution. K is that of the position with the fewest.
    """
    content = choice.logprobs.content if choice.logprobs is not None else None
    if not content:
        return MappedCompletion(_given_ids(choice), None)
    sampled = [tokens.id_of(entry) for entry in content]
    ids = _given_ids(choice)
    if ids is not None and len(ids) >= len(content):
        # An end token without logprobs of its own is left out: every stored token has its distribution.
        sampled = ids[: len(content)].tolist()
    if any(index is None for index in sampled):
        return MappedCompletion(None, None)
    ids_T = np.asarray(sampled, np.int32)
    positions = [_best(entry, index, tokens) for entry, index in zip(content, ids_T.tolist(), strict=True)]
    K = min(num_logprobs, *(len(position) for position in positions))
    ids_TK = np.asarray([[index for index, _ in position[:K]] for position in positions], np.int32)
    logprobs_TK = np.asarray([[value for _, value in position[:K]] for position in positions], np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest_T = 1.0 - np.exp(logprobs_TK).sum(axis=1)
        tail_T = np.where(rest_T > 0.0, np.log(np.maximum(rest_T, 0.0)), -np.inf)
    if not np.isfinite(logprobs_TK).all():
        return MappedCompletion(ids_T, None)
    signal = keep_signal(
        ids_TK.reshape(len(ids_T), K),
        logprobs_TK.reshape(len(ids_T), K),
        np.asarray([entry.logprob for entry in content], np.float32),
        tail_T,
    )
    return MappedCompletion(ids_T, signal)


def _given_ids(choice: Choice) -> Int32Array | None:
    return np.asarray(choice.token_ids, np.int32) if choice.token_ids else None


def _best(entry: TokenLogprob, sampled: int, tokens: TokenMap) -> list[tuple[int, float]]:
    """(id, logprob) of a position, best first; alternatives without an id join the tail."""
    found = {sampled: entry.logprob}
    for other in entry.top_logprobs:
        index = tokens.id_of(other)
        if index is not None and not math.isnan(other.logprob):
            found.setdefault(index, other.logprob)
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))
