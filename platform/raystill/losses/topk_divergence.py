"""Divergence between a teacher known at its K best tokens plus one tail bucket, and a student's logits.

Shape letters: N rows that carry loss, V vocabulary, K stored logprobs, J = K + 1 coarse outcomes (the K
tokens and "anything else").

Both sides are coarse-grained to the same J outcomes. In logits, coarse-graining is

    u_k = z[id_k]  for the K tokens,      u_tail = logsumexp of z over all other tokens

and softmax(u) is exactly the coarse distribution, so a divergence of coarse distributions is an ordinary
dense one on u. By the data-processing inequality it never exceeds the divergence of the full distributions.

At a KD temperature T other than 1 the *coarse* distributions of both sides are tempered, p^(1/T) / Z (the
teacher's full distribution isn't known), and the term is multiplied by T^2 so that its gradient keeps its
size (Hinton et al. 2015). With K = V the tail is empty and this is dense tempered distillation exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raystill.losses.teachers import TopKTeacher
from raystill.losses.terms import Divergence

# Reverse KL weighs log(student / teacher): a teacher outcome of mass 0 counts as this one (about 1e-20).
LOG_FLOOR = -46.0


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
        logits_NV.scatter_(1, teacher.ids_NK, -torch.inf)
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
    coarse_logits_NJ: Tensor, teacher_logprobs_NJ: Tensor, divergence: Divergence, kd_temperature: float
) -> tuple[Tensor, Tensor]:
    """T^2 * divergence per row in nats, and its gradient in the coarse logits.

    With s = softmax(u / T) and t the teacher's tempered distribution:
    forward_kl: sum t (log t - log s), gradient T (s - t).
    reverse_kl: R = sum s (log s - log t), gradient T s (log s - log t - R).
    """
    T = kd_temperature
    log_s_NJ = torch.log_softmax(coarse_logits_NJ / T, dim=-1)
    log_t_NJ = torch.log_softmax(teacher_logprobs_NJ / T, dim=-1)
    s_NJ = log_s_NJ.exp()
    if divergence == "forward_kl":
        t_NJ = log_t_NJ.exp()
        terms_NJ = torch.where(t_NJ > 0, t_NJ * (log_t_NJ - log_s_NJ), 0.0)
        return T * T * terms_NJ.sum(dim=-1), T * (s_NJ - t_NJ)
    log_ratio_NJ = log_s_NJ - log_t_NJ.clamp(min=LOG_FLOOR)
    terms_NJ = torch.where(s_NJ == 0, 0.0, s_NJ * log_ratio_NJ)
    value_N = terms_NJ.sum(dim=-1)
    return T * T * value_N, T * (terms_NJ - s_NJ * value_N.unsqueeze(-1))


def compute_topk_divergence(
    logits_NV: Tensor,
    teacher: TopKTeacher,
    divergence: Divergence = "forward_kl",
    kd_temperature: float = 1.0,
) -> Tensor:
    """The divergence per row, in nats, of full logits: for measuring. [N] in float32 (float64 stays)."""
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    coarse = coarsen_(logits_NV.detach().to(dtype, copy=True), teacher)
    teacher_NJ = teacher.coarse_logprobs(dtype)
    value_N, _ = coarse_divergence(coarse.logits_NJ, teacher_NJ, divergence, kd_temperature)
    return value_N
