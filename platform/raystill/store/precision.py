"""How exactly a captured distribution is kept: eight significant bits, and a ninth where it counts most.

bfloat16 has eight and float16 eleven. An error of a logprob counts in KL by its square, with its token's
probability. Rounding errs most just past a power of two, where its step has doubled, so the ninth bit goes
there, as far as p * step^2 is above about 1e-5: at equal size that errs less than nine bits for every likely
token, and no probability is off by more than 0.001. Bits below are noise to a compressor; zeros cost next to
nothing. Columns keep their types.

Shape letters: T completion tokens, K logprobs per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raystill.store.records import Float16Array, Float32Array, Int32Array, TopKSignal

SIGNIFICANT_BITS = 8
# (lowest, highest) logprob with one bit more. The ends are multiples of both steps, so that rounding can't
# exchange two logprobs.
FINER_BANDS = ((-0.75, -0.5), (-1.5, -1.0), (-2.75, -2.0), (-4.375, -4.0))
# A kept logprob is off by at most its magnitude times this.
RELATIVE_ERROR = 2.0**-SIGNIFICANT_BITS
_FLOAT32_BITS = 24
_PREFIX_SHIFT = np.uint32(16)
# float16's lowest number, -65504, would round to what float16 can't hold.
_LOWEST_FLOAT16 = -65280.0


def keep_signal(
    ids_TK: Int32Array,
    logprobs_TK: npt.NDArray[Any],
    sampled_T: npt.NDArray[Any],
    tail_T: npt.NDArray[Any],
) -> TopKSignal:
    """What is stored of a captured distribution; the sampled token's logprob is rounded like its entry."""
    num_tokens, num_entries = len(sampled_T), logprobs_TK.size
    # Rounded in one go: rows are short, and calls cost more than numbers.
    rounded = round_logprobs(np.concatenate([logprobs_TK.reshape(-1), sampled_T, tail_T]))
    return TopKSignal(
        topk_ids_TK=ids_TK,
        topk_logprobs_TK=_to_float16(rounded[:num_entries]).reshape(logprobs_TK.shape),
        sampled_logprob_T=rounded[num_entries : num_entries + num_tokens],
        tail_logprob_T=rounded[num_entries + num_tokens :],
    )


def round_logprobs(logprobs: npt.NDArray[Any]) -> Float32Array:
    """Logprobs of any shape to the nearest float32 that is kept, ties to even.

    Equal or smaller ones stay so. Zeros, infinities and NaN stay what they are.
    """
    exact: Float32Array = np.ascontiguousarray(logprobs, np.float32)
    raw = exact.view(np.uint32)
    unit = _UNITS[raw >> _PREFIX_SHIFT]  # what the last bit that is kept stands for
    nearest = raw + (unit >> np.uint32(1)) - ((raw & unit) == 0)
    rounded: Float32Array = (nearest & -unit).view(np.float32)
    if np.isnan(exact.max(initial=-np.inf)):  # rounding may carry into a NaN's sign
        rounded = np.where(np.isnan(exact), exact, rounded)
    return rounded


def _build_units() -> npt.NDArray[np.uint32]:
    """The last kept bit of a float32 by its first 16 bits, the ends of a band among the coarser ones."""
    prefixes = np.arange(1 << 16, dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        lowest_magnitudes = (prefixes << _PREFIX_SHIFT).view(np.float32)
    units = np.full(len(prefixes), 1 << (_FLOAT32_BITS - SIGNIFICANT_BITS), np.uint32)
    for lowest, highest in FINER_BANDS:
        units[(lowest_magnitudes > lowest) & (lowest_magnitudes <= highest)] >>= np.uint32(1)
    return units


_UNITS = _build_units()


def _to_float16(rounded: Float32Array) -> Float16Array:
    lowest = rounded.min(initial=0.0)
    if lowest > _LOWEST_FLOAT16 or np.isnan(lowest):  # NaN stays, and the check on write refuses it
        return rounded.astype(np.float16)
    fitting = np.where(rounded == -65536.0, np.float32(_LOWEST_FLOAT16), rounded)
    with np.errstate(over="ignore"):  # beyond float16 is -inf, which the check on write refuses
        kept: Float16Array = fitting.astype(np.float16)
    return kept
