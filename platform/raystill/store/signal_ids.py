"""Stored top-k signals for a model whose vocabulary is not quite their teacher's.

Shape letters: T completion tokens, K stored logprobs.
"""

from __future__ import annotations

import numpy as np

from raystill.store.records import TopKSignal


def fold_into_tail(signal: TopKSignal, vocab_size: int) -> TopKSignal:
    """Move stored tokens that a model of `vocab_size` has no logit for into the tail: padding of the
    teacher's head, or what a translation has no number for."""
    foreign_TK = signal.topk_ids_TK >= vocab_size
    if not foreign_TK.any():
        return signal
    logprobs_TK = signal.topk_logprobs_TK.astype(np.float32)
    moved_T = np.where(foreign_TK, np.exp(logprobs_TK), 0.0).sum(axis=1)
    with np.errstate(divide="ignore"):
        tail_T = np.log(np.exp(signal.tail_logprob_T) + moved_T).astype(np.float32)
    return TopKSignal(
        topk_ids_TK=np.where(foreign_TK, 0, signal.topk_ids_TK).astype(np.int32),
        topk_logprobs_TK=np.where(foreign_TK, -np.inf, logprobs_TK).astype(np.float16),
        sampled_logprob_T=signal.sampled_logprob_T,
        tail_logprob_T=tail_T,
    )
