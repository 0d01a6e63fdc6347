"""Divergences between two distributions, and what their gradient needs. One formula for every kind of signal.

Shape letters: N rows, J outcomes (the coarse ones of a top k, or a whole vocabulary).

With s the student's and t the teacher's probabilities, each is a sum over outcomes of f(s, t):

    forward_kl       t log(t / s)                          KL(teacher || student)
    reverse_kl       s log(s / t)                          KL(student || teacher)
    jsd              beta t log(t / m) + (1 - beta) s log(s / m),  m = beta t + (1 - beta) s
                     (generalised Jensen-Shannon, Agarwal et al. 2024, arXiv 2306.13649)
    skew_forward_kl  t log(t / m),  m = alpha t + (1 - alpha) s
    skew_reverse_kl  s log(s / m),  m = alpha s + (1 - alpha) t
                     (Ko et al. 2024, arXiv 2402.03898)
    tvd              |s - t| / 2

As s = softmax(u / T), the gradient of a sum D in u is (pull - s * sum(pull)) / T with pull = s * df/ds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raystill.losses.terms import LossTerms

# Reverse KL weighs log(student / teacher): a teacher outcome of mass 0 counts as this one (about 1e-20).
LOG_FLOOR = -46.0
# Probabilities closer than so many roundings are the same to tvd, whose gradient jumps there.
_ROUNDINGS = 64.0


def compare(log_s_NJ: Tensor, log_t_NJ: Tensor, terms: LossTerms) -> tuple[Tensor, Tensor]:
    """f per outcome, in nats, and its `pull`; both [N, J]. -inf is an outcome that can't be."""
    s_NJ, t_NJ = log_s_NJ.exp(), log_t_NJ.exp()
    match terms.divergence:
        case "forward_kl":
            return _times_log(t_NJ, log_t_NJ - log_s_NJ), -t_NJ
        case "reverse_kl":
            value_NJ = _times_log(s_NJ, log_s_NJ - log_t_NJ.clamp(min=LOG_FLOOR))
            return value_NJ, value_NJ + s_NJ
        case "jsd":
            return _compare_jsd(log_s_NJ, log_t_NJ, s_NJ, t_NJ, terms.beta)
        case "skew_forward_kl":
            log_m_NJ = _log_mixture(log_t_NJ, log_s_NJ, terms.alpha)
            pull_NJ = _product(s_NJ, t_NJ, log_m_NJ).mul_(terms.alpha - 1.0)
            return _times_log(t_NJ, log_t_NJ - log_m_NJ), pull_NJ
        case "skew_reverse_kl":
            log_m_NJ = _log_mixture(log_s_NJ, log_t_NJ, terms.alpha)
            value_NJ = _times_log(s_NJ, log_s_NJ - log_m_NJ)
            return value_NJ, value_NJ + s_NJ - terms.alpha * _product(s_NJ, s_NJ, log_m_NJ)
        case "tvd":
            difference_NJ = s_NJ - t_NJ
            rounding = _ROUNDINGS * torch.finfo(s_NJ.dtype).eps
            same_NJ = difference_NJ.abs() <= rounding * torch.maximum(s_NJ, t_NJ)
            sign_NJ = difference_NJ.sign().masked_fill_(same_NJ, 0.0)
            return difference_NJ.abs().mul_(0.5), sign_NJ.mul_(s_NJ).mul_(0.5)


def project(pull_NJ: Tensor, s_NJ: Tensor) -> Tensor:
    """pull - s * sum(pull): from the probabilities' simplex to the logits, in the memory of `pull_NJ`."""
    return pull_NJ.sub_(s_NJ * pull_NJ.sum(dim=-1, keepdim=True))


def entropy(log_t_NJ: Tensor) -> Tensor:
    """-sum t log t per row, in nats. [N]."""
    return -_times_log(log_t_NJ.exp(), log_t_NJ).sum(dim=-1)


def _compare_jsd(
    log_s_NJ: Tensor, log_t_NJ: Tensor, s_NJ: Tensor, t_NJ: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    log_m_NJ = _log_mixture(log_t_NJ, log_s_NJ, beta)
    pull_NJ = _times_log(s_NJ, log_s_NJ - log_m_NJ).mul_(1.0 - beta)
    return beta * _times_log(t_NJ, log_t_NJ - log_m_NJ) + pull_NJ, pull_NJ


def _log_mixture(log_a_NJ: Tensor, log_b_NJ: Tensor, share: float) -> Tensor:
    """log(share * a + (1 - share) * b)."""
    return torch.logaddexp(log_a_NJ + math.log(share), log_b_NJ + math.log1p(-share))


def _product(a_NJ: Tensor, b_NJ: Tensor, log_m_NJ: Tensor) -> Tensor:
    """a * b / m, 0 where there is no mass at all (b <= m / share, so nothing overflows elsewhere)."""
    ratio_NJ = (b_NJ.log() - log_m_NJ).exp_()
    return torch.where(a_NJ > 0, a_NJ * ratio_NJ, 0.0)


def _times_log(weight_NJ: Tensor, log_NJ: Tensor) -> Tensor:
    """weight * log with 0 * log 0 = 0."""
    return torch.where(weight_NJ > 0, weight_NJ * log_NJ, 0.0)
