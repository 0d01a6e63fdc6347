"""Cross entropy of the target token, from coarse logits (`topk_divergence.coarsen_`).

Shape letters: N rows that carry loss, J = K + 1 coarse outcomes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(coarse_logits_NJ: Tensor, target_logits_N: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] per row in nats, and the student's coarse probabilities.

    Coarse-graining keeps the normaliser: logsumexp over the J outcomes equals logsumexp over the vocabulary.
    So the loss is logsumexp - target logit, and its gradient is softmax - onehot(target): the softmax part,
    over the J outcomes, is the second value; the caller subtracts the onehot at the target's own place.
    """
    log_normaliser_N = torch.logsumexp(coarse_logits_NJ, dim=-1)
    probabilities_NJ = torch.exp(coarse_logits_NJ - log_normaliser_N.unsqueeze(-1))
    return log_normaliser_N - target_logits_N, probabilities_NJ
