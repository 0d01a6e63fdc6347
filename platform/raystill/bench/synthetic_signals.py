"""Top-k distributions of the shape that trained models have, for benchmarks that need many of them at once.

Shape letters: T tokens, K logprobs per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raystill.store.records import Int32Array, TopKSignal

VOCAB_SIZE = 151_936


@dataclass(frozen=True)
class DrawnTopK:
    """K best tokens at T positions, and the token that was drawn: its id, its rank (from 0) and its logprob.

    Rank K means a token of the tail, id `VOCAB_SIZE - 1`.
    """

    ids_TK: Int32Array
    logprobs_TK: npt.NDArray[np.float64]
    tail_logprob_T: npt.NDArray[np.float64]
    token_ids_T: Int32Array
    ranks_T: npt.NDArray[np.int64]
    token_logprobs_T: npt.NDArray[np.float64]

    def signal(self) -> TopKSignal:
        """The signal as a store holds it."""
        return TopKSignal(
            topk_ids_TK=self.ids_TK,
            topk_logprobs_TK=self.logprobs_TK.astype(np.float16),
            sampled_logprob_T=self.token_logprobs_T.astype(np.float32),
            tail_logprob_T=self.tail_logprob_T.astype(np.float32),
        )


def draw_topk(seed: int, num_tokens: int, num_logprobs: int) -> DrawnTopK:
    """Random distributions: Gumbel-spaced logits, 0.1 to 30 % of the mass in the tail, one token drawn.

    Ids are different within a position and spread over the whole vocabulary. Equal seeds give equal draws.
    """
    rng = np.random.default_rng(seed)
    tail_T = rng.uniform(0.001, 0.3, num_tokens)
    weights_TK = np.exp(np.sort(2.0 * rng.gumbel(size=(num_tokens, num_logprobs)), axis=1)[:, ::-1])
    mass_TK = weights_TK / weights_TK.sum(axis=1, keepdims=True) * (1.0 - tail_T[:, None])
    gaps_TK = rng.integers(1, VOCAB_SIZE // num_logprobs, (num_tokens, num_logprobs))
    ids_TK = rng.permuted(np.cumsum(gaps_TK, axis=1), axis=1).astype(np.int32)
    ranks_T = (np.cumsum(mass_TK, axis=1) < rng.uniform(size=(num_tokens, 1))).sum(axis=1)
    # One column more stands for a token of the tail: less likely than any of the k.
    all_ids = np.concatenate([ids_TK, np.full((num_tokens, 1), VOCAB_SIZE - 1, np.int32)], axis=1)
    rare_T1 = np.minimum(mass_TK[:, -1:], tail_T[:, None]) / 2.0
    all_mass = np.concatenate([mass_TK, rare_T1], axis=1)
    rows_T = np.arange(num_tokens)
    return DrawnTopK(
        ids_TK=ids_TK,
        logprobs_TK=np.log(mass_TK),
        tail_logprob_T=np.log(tail_T),
        token_ids_T=all_ids[rows_T, ranks_T],
        ranks_T=ranks_T,
        token_logprobs_T=np.log(all_mass[rows_T, ranks_T]),
    )
