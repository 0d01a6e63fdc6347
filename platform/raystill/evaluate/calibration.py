"""Whether a student knows how sure it may be: how far its token probabilities are from how often it is right.

The expected calibration error of C. Guo et al., On Calibration of Modern Neural Networks (ICML 2017), after
M. P. Naeini et al. (AAAI 2015): tokens are put into bins of equal width by the probability of the model's
favourite, and ECE = sum over bins of (tokens in the bin / all tokens) * |mean probability - share right|.
Right means that the favourite is the token that stands there. Shape letters: N tokens, V vocabulary, M bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raystill.evaluate.intervals import Interval, compute_calibration_interval

NUM_BINS = 15


@dataclass(frozen=True)
class ReliabilityBins:
    """Tokens by the probability of the favourite: per bin the sum of those probabilities, and how many of
    the `counts` tokens were right. Bin m holds probabilities in (m / M, (m + 1) / M]."""

    counts: tuple[int, ...]
    confidence_sums: tuple[float, ...]
    num_right: tuple[int, ...]


def bin_confidences(logits_NV: torch.Tensor, target_N: torch.Tensor) -> ReliabilityBins:
    """The bins of N positions whose right tokens are `target_N` (int64)."""
    logprob_N, favourite_N = torch.log_softmax(logits_NV.double(), dim=-1).max(dim=-1)
    confidence_N = logprob_N.exp()
    bin_N = (torch.ceil(confidence_N * NUM_BINS).long() - 1).clamp(0, NUM_BINS - 1).cpu()
    right_N = (favourite_N == target_N).cpu()

    def total(weights_N: torch.Tensor | None) -> torch.Tensor:
        return torch.bincount(bin_N, weights_N, minlength=NUM_BINS)

    return ReliabilityBins(
        counts=tuple(total(None).tolist()),
        confidence_sums=tuple(total(confidence_N.cpu()).tolist()),
        num_right=tuple(total(right_N.double()).long().tolist()),
    )


def measure_calibration(rows: Sequence[ReliabilityBins]) -> Interval:
    """The calibration error over the tokens of all rows (one per prompt), with its interval over prompts.

    Raises ValueError without a token.
    """
    counts_PM = np.asarray([row.counts for row in rows], dtype=np.float64)
    confidence_PM = np.asarray([row.confidence_sums for row in rows], dtype=np.float64)
    right_PM = np.asarray([row.num_right for row in rows], dtype=np.float64)
    return compute_calibration_interval(confidence_PM - right_PM, counts_PM.sum(axis=1))
