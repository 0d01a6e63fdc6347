"""Confidence intervals. All are 95 %, and all resample or count prompts, because tokens of one completion
are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
NUM_RESAMPLES = 2000
_CHUNK = 100

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval from `n` prompts."""

    value: float
    low: float
    high: float
    n: int


class NoGapError(ValueError):
    """The teacher is no better than the student was before training: there is no gap to close."""


def compute_wilson_interval(successes: int, n: int) -> Interval:
    """The Wilson score interval of a rate.

    centre = (p + z²/2n) / (1 + z²/n), half-width = z / (1 + z²/n) * sqrt(p(1-p)/n + z²/4n²)
    (E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927).
    Unlike the normal interval it is right at rates of 0 and 1. Raises ValueError unless 0 <= successes <= n
    and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a rate")
    p = successes / n
    scale = 1 + Z_95**2 / n
    centre = (p + Z_95**2 / (2 * n)) / scale
    half = Z_95 / scale * sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
    # At p = 0 and p = 1 the bound equals p exactly; rounding must not put the value outside.
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def compute_ratio_interval(sums_P: Float64Array, weights_P: Float64Array, *, seed: int = 0) -> Interval:
    """sum(sums) / sum(weights) over P prompts with a percentile bootstrap over prompts.

    For a per-token mean give each prompt's sum and its number of tokens: a cluster bootstrap (B. Efron and
    R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Raises ValueError without weight.
    """
    n = len(sums_P)
    if n == 0 or sums_P.shape != weights_P.shape or float(weights_P.sum()) <= 0:
        raise ValueError("nothing to average")
    resampled = _resample(np.stack([sums_P, weights_P], axis=1), seed)
    ratios = resampled[:, 0] / np.maximum(resampled[:, 1], np.finfo(np.float64).tiny)
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = float(sums_P.sum() / weights_P.sum())
    return Interval(value, min(value, float(low)), max(value, float(high)), n)


def compute_calibration_interval(excess_PM: Float64Array, weights_P: Float64Array) -> Interval:
    """sum over bins of |sum over prompts of excess| / sum(weights), with a bootstrap over the P prompts.

    `excess_PM` is, per prompt and bin, the sum of confidences minus the number right; `weights_P` the number
    of tokens. A sample's error is a little above the true one (chance never cancels in an absolute value),
    and a resample's above the sample's; the interval is not corrected for it. Raises ValueError without
    weight.
    """
    n = len(excess_PM)
    if n == 0 or len(weights_P) != n or float(weights_P.sum()) <= 0:
        raise ValueError("nothing to average")
    resampled = _resample(np.concatenate([excess_PM, weights_P[:, None]], axis=1), 0)
    errors = np.abs(resampled[:, :-1]).sum(axis=1) / np.maximum(resampled[:, -1], np.finfo(np.float64).tiny)
    low, high = np.percentile(errors, [2.5, 97.5])
    value = float(np.abs(excess_PM.sum(axis=0)).sum() / weights_P.sum())
    return Interval(value, min(value, float(low)), max(value, float(high)), n)


def compute_gap_closed(
    before_P: Float64Array,
    after_P: Float64Array,
    teacher_P: Float64Array,
    weights_P: Float64Array | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """(after - before) / (teacher - before), where each is the (weighted) mean of one score per prompt.

    Paired: a resample takes the same prompts for all three. Resamples without a gap count as infinite (with
    the sign of the numerator), so a gap that is hardly there gives an interval that says so. Raises
    NoGapError if the teacher's mean is not above the mean before, and ValueError if the lengths differ.
    """
    n = len(before_P)
    weights = np.ones(n) if weights_P is None else weights_P
    if not len(after_P) == len(teacher_P) == len(weights) == n or n == 0:
        raise ValueError("scores before, after and of the teacher must cover the same prompts")
    columns = np.stack([after_P - before_P, teacher_P - before_P, np.ones(n)], axis=1) * weights[:, None]
    gained, gap, _ = columns.sum(axis=0)
    if gap <= 0:
        raise NoGapError("the teacher is no better than the untrained student")
    resampled = _resample(columns, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(
            resampled[:, 1] > 0, resampled[:, 0] / resampled[:, 1], np.copysign(np.inf, resampled[:, 0])
        )
    low, high = np.percentile(shares, [2.5, 97.5], method="nearest")
    value = float(gained / gap)
    return Interval(value, min(value, float(low)), max(value, float(high)), n)


def _resample(columns_PC: Float64Array, seed: int) -> Float64Array:
    """Column sums of NUM_RESAMPLES bootstrap samples of the P rows, [R, C]."""
    generator = np.random.default_rng(seed)
    n = len(columns_PC)
    share = np.full(n, 1.0 / n)
    chunks = [
        generator.multinomial(n, share, size=min(_CHUNK, NUM_RESAMPLES - start)) @ columns_PC
        for start in range(0, NUM_RESAMPLES, _CHUNK)
    ]
    return np.concatenate(chunks)
