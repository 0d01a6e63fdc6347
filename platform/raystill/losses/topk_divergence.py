"""A teacher known at its K best tokens plus one tail bucket, against a student's logits.

Shape letters: N rows that carry loss, V vocabulary, K stored logprobs, J = K + 1 coarse outcomes (the K
tokens and "anything else").

Both sides are coarse-grained to the same J outcomes. In logits, coarse-graining is

    u_k = z[id_k]  for the K tokens,      u_tail = logsumexp of z over all other tokens

and softmax(u) is exactly the coarse distribution, so a divergence of coarse distributions is an ordinary
dense one on u. By the data-processing inequality it never exceeds the divergence of the full distributions.

At a KD temperature T other than 1 the *coarse* distributions of both sides are tempered, p^(1/T) / Z (the
teacher's full distribution isn't known), and the term is multiplied by T^2 so that its gradient keeps its
size (Hinton et al. 2015). With K = V the tail is empty and this is dense tempered distillation exactly.

`tail` is what becomes of the mass outside the K tokens. bucket: one more outcome, as above. The other two are
what others do, and biased. renormalised: the teacher's K probabilities are scaled to sum to 1, the student is
pushed to put nothing elsewhere. dropped: the sum over outcomes leaves the tail out, so it may be negative,
and isn't at rest where the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raystill.losses.divergences import compare, project
from raystill.losses.teachers import TopKTeacher
from raystill.losses.terms import Divergence, LossTerms, Tail


@dataclass(frozen=True)
class CoarseLogits:
    """Coarse logits u, and what carries a gradient in u back to the vocabulary.

    `tail_weights_NV` is exp(z - its row's largest tail logit), 0 at the K tokens; `tail_sums_N` its row sums.
    """

    logits_NJ: Tensor
    tail_weights_NV: Tensor
    tail_sums_N: Tensor


def coarsen_(logits_NV: Tensor, teacher: TopKTeacher | None) -> CoarseLogits:
    """Coarse-grain logits to the teacher's outcomes, reusing `logits_NV` as memory; None means K = 0.

    The tail is summed over the tail's own tokens, scaled by their own maximum, so it keeps full relative
    precision whether it holds nearly all of the mass or nearly none (1 - sum(top k) would not).
    """
    if teacher is None:
        top_logits_NK = logits_NV[:, :0]
    else:
        absent_NK = torch.isneginf(teacher.logprobs_NK)
        top_logits_NK = logits_NV.gather(1, teacher.ids_NK).masked_fill_(absent_NK, -torch.inf)
        # Adding, since an absent entry's id may be that of a token in the tail, or repeat a stored one.
        removed_NK = torch.full_like(top_logits_NK, -torch.inf).masked_fill_(absent_NK, 0.0)
        logits_NV.scatter_add_(1, teacher.ids_NK, removed_NK)
    largest_N1 = logits_NV.amax(dim=-1, keepdim=True)
    largest_N1.masked_fill_(torch.isneginf(largest_N1), 0.0)  # an empty tail: exp(-inf - 0) = 0
    weights_NV = logits_NV.sub_(largest_N1).exp_()
    sums_N = weights_NV.sum(dim=-1)
    tail_N1 = largest_N1 + sums_N.unsqueeze(-1).log()
    return CoarseLogits(torch.cat([top_logits_NK, tail_N1], dim=-1), weights_NV, sums_N)


def refine_(coarse: CoarseLogits, gradient_NJ: Tensor, teacher: TopKTeacher | None) -> Tensor:
    """The gradient in the vocabulary's logits of a loss whose gradient in u is `gradient_NJ`.

    du_tail/dz_i is the softmax within the tail. Reuses (and returns) the memory of `tail_weights_NV`.
    """
    K = gradient_NJ.shape[1] - 1
    scale_N = torch.where(coarse.tail_sums_N == 0, 0.0, gradient_NJ[:, K] / coarse.tail_sums_N)
    gradient_NV = coarse.tail_weights_NV.mul_(scale_N.unsqueeze(-1))
    if teacher is not None:
        gradient_NV.scatter_add_(1, teacher.ids_NK, gradient_NJ[:, :K])
    return gradient_NV


def coarse_divergence(
    coarse_logits_NJ: Tensor, log_t_NJ: Tensor, terms: LossTerms, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """T^2 * divergence per row in nats, and its gradient in the coarse logits.

    `log_t_NJ` are the teacher's coarse logprobs at temperature 1 (`teacher_outcomes`); T is a number, or one
    per row as [N, 1].
    """
    log_s_NJ = torch.log_softmax(coarse_logits_NJ / temperature, dim=-1)
    log_t_NJ = torch.log_softmax(log_t_NJ / temperature, dim=-1)
    value_NJ, pull_NJ = compare(log_s_NJ, log_t_NJ, terms)
    if terms.tail == "dropped":
        value_NJ[:, -1], pull_NJ[:, -1] = 0.0, 0.0
    scale = temperature * temperature
    return (scale * value_NJ).sum(dim=-1), project(pull_NJ, log_s_NJ.exp()).mul_(temperature)


def teacher_outcomes(teacher: TopKTeacher, tail: Tail, dtype: torch.dtype) -> Tensor:
    """The teacher's coarse logprobs at temperature 1, normalised over what `tail` keeps. [N, J]."""
    logprobs_NJ = teacher.coarse_logprobs(dtype)
    if tail == "renormalised":
        logprobs_NJ[:, -1] = -torch.inf
    return torch.log_softmax(logprobs_NJ, dim=-1)


def compute_topk_divergence(
    logits_NV: Tensor,
    teacher: TopKTeacher,
    divergence: Divergence = "forward_kl",
    kd_temperature: float = 1.0,
) -> Tensor:
    """The divergence per row, in nats, of full logits: for measuring. [N] in float32 (float64 stays)."""
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    coarse = coarsen_(logits_NV.detach().to(dtype, copy=True), teacher)
    terms = LossTerms(divergence=divergence)
    log_t_NJ = teacher_outcomes(teacher, terms.tail, dtype)
    return coarse_divergence(coarse.logits_NJ, log_t_NJ, terms, kd_temperature)[0]
