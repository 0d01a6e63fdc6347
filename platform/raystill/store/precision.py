"""How exactly a captured distribution is kept: likely tokens to nine significant bits, the others to eight.

bfloat16 has eight and float16 eleven. An error of a logprob counts in KL with its token's probability, so the
ninth bit is worth its space where the probability is: what is kept errs less than bfloat16 everywhere that
matters and nowhere more. Bits below are noise to a compressor; zeros, in byte planes, cost nothing. Columns
keep their types.

Shape letters: T completion tokens, K logprobs per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raystill.store.records import Float16Array, Float32Array, Int32Array, TopKSignal

SIGNIFICANT_BITS = 9
# Below this (p < 1.5 %) one bit less. A multiple of both steps, so that rounding can't exchange two logprobs.
UNLIKELY_LOGPROB = -4.25
# A kept logprob is off by at most its magnitude times this.
RELATIVE_ERROR = 2.0 ** (1 - SIGNIFICANT_BITS)
_FLOAT32_BITS = 24
# float16's lowest number, -65504, would round to what float16 can't hold.
_LOWEST_FLOAT16 = -65280.0


def keep_signal(
    ids_TK: Int32Array,
    logprobs_TK: npt.NDArray[Any],
    sampled_T: npt.NDArray[Any],
    tail_T: npt.NDArray[Any],
) -> TopKSignal:
    """What is stored of a captured distribution; the sampled token's logprob is rounded like its entry."""
    return TopKSignal(
        topk_ids_TK=ids_TK,
        topk_logprobs_TK=_to_float16(round_logprobs(logprobs_TK)),
        sampled_logprob_T=round_logprobs(sampled_T),
        tail_logprob_T=round_logprobs(tail_T),
    )


def round_logprobs(logprobs: npt.NDArray[Any]) -> Float32Array:
    """Logprobs of any shape to the nearest float32 that is kept, ties to even.

    Equal or smaller ones stay so. Zeros, infinities and NaN stay what they are.
    """
    exact: Float32Array = np.ascontiguousarray(logprobs, np.float32)
    likely, unlikely = (_round(exact, bits) for bits in (SIGNIFICANT_BITS, SIGNIFICANT_BITS - 1))
    rounded: Float32Array = np.where(exact < UNLIKELY_LOGPROB, unlikely, likely)
    return np.where(np.isnan(exact), exact, rounded)  # rounding may carry into a NaN's sign


def _round(exact: Float32Array, bits: int) -> Float32Array:
    raw, one, dropped = exact.view(np.uint32), np.uint32(1), np.uint32(_FLOAT32_BITS - bits)
    below_half = (one << (dropped - one)) - one
    kept = ~((one << dropped) - one)
    return ((raw + (below_half + ((raw >> dropped) & one))) & kept).view(np.float32)


def _to_float16(rounded: Float32Array) -> Float16Array:
    fitting = np.where(rounded == -65536.0, np.float32(_LOWEST_FLOAT16), rounded)
    with np.errstate(over="ignore"):  # beyond float16 is -inf, which the check on write refuses
        kept: Float16Array = fitting.astype(np.float16)
    return kept
