"""Steps whose gradient stands far out: skipped, but never more than a few in a row.

A gradient's norm is a spike if it exceeds both twice the median of the last accepted norms and the median
plus `threshold` robust standard deviations (1.4826 times the median absolute deviation). After `longest`
skipped steps in a row the next one is taken and the history starts anew: then the loss has moved for good.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

HISTORY = 50
_LEAST_HISTORY = 20
_LEAST_FACTOR = 2.0
_MAD_TO_SIGMA = 1.4826


def is_spike(norm: float, recent: Sequence[float], threshold: float) -> bool:
    """Whether `norm` stands out of `recent`; never with fewer than 20 of them, or a threshold of 0."""
    if threshold == 0 or len(recent) < _LEAST_HISTORY:
        return False
    median = statistics.median(recent)
    deviation = _MAD_TO_SIGMA * statistics.median(abs(value - median) for value in recent)
    return norm > max(_LEAST_FACTOR * median, median + threshold * deviation)
