"""vLLM's flat logprobs to arrays, without a Python object per entry.

Shape letters: T completion tokens, K stored logprobs, P prompt tokens. vLLM keeps K + 1 entries per position:
the token that stands there first, then the K best in order (so the token appears twice where it is one of
them). All positions have the same width, which makes the conversion a reshape.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from raystill.store.precision import keep_signal
from raystill.store.records import Float32Array, TopKSignal

# Masked tokens have -inf; float16 ends at -65504.
MIN_LOGPROB = -6.0e4


class FlatLogprobs(Protocol):
    """The part of `vllm.logprobs.FlatLogprobs` that is read here."""

    token_ids: list[int]
    logprobs: list[float]


def generated_signal(flat: FlatLogprobs, num_tokens: int, num_logprobs: int) -> TopKSignal:
    """The signal of `num_tokens` generated tokens."""
    return _signal(flat, 0, num_tokens, num_logprobs)


def prompt_signal(
    flat: FlatLogprobs, num_prompt_tokens: int, num_tokens: int, num_logprobs: int
) -> TopKSignal:
    """The signal of the last `num_tokens` of a teacher-forced text whose first P tokens are the prompt.

    vLLM has no entries for the first token of a text (nothing precedes it), so token P's start at
    (P - 1) * (K + 1).
    """
    return _signal(flat, num_prompt_tokens - 1, num_tokens, num_logprobs)


def compute_tail_logprob(topk_logprobs_TK: Float32Array) -> Float32Array:
    """log(1 - sum of the top-k probabilities), -inf where nothing is left. Float32 in, float64 inside.

    Rounding may push the sum past 1; that is clipped. Below about 1e-7 the tail is noise of float32 logprobs
    and counts as nothing.
    """
    mass_T = np.exp(topk_logprobs_TK.astype(np.float64)).sum(axis=1)
    left_T = 1.0 - mass_T
    left_T[left_T < 1e-7] = 0.0
    with np.errstate(divide="ignore"):
        tail_T: Float32Array = np.log(left_T).astype(np.float32)
    return tail_T


def _signal(flat: FlatLogprobs, first: int, num_tokens: int, num_logprobs: int) -> TopKSignal:
    width = num_logprobs + 1
    entries = slice(first * width, (first + num_tokens) * width)
    ids = np.asarray(flat.token_ids[entries], dtype=np.int32)
    logprobs = np.asarray(flat.logprobs[entries], dtype=np.float32)
    if ids.size != num_tokens * width:
        raise ValueError(f"{ids.size} logprob entries for {num_tokens} tokens of {width} each")
    ids_TW = ids.reshape(num_tokens, width)
    logprobs_TW = logprobs.reshape(num_tokens, width)
    topk_TK = np.clip(logprobs_TW[:, 1:], MIN_LOGPROB, 0.0)
    return keep_signal(
        np.ascontiguousarray(ids_TW[:, 1:]),
        topk_TK,
        np.clip(logprobs_TW[:, 0], MIN_LOGPROB, 0.0),
        compute_tail_logprob(topk_TK),
    )
