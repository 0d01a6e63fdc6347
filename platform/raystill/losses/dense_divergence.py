"""A teacher known over its whole vocabulary, against a student's logits.

Shape letters: N rows that carry loss, V the student's vocabulary, M the vocabulary that both have, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raystill.losses.divergences import compare, project
from raystill.losses.teachers import MixedTeacher, WholeTeacher
from raystill.losses.terms import LossTerms


def project_teacher(teacher: WholeTeacher, vocab_size: int) -> Tensor:
    """The head's product over the first min(the teacher's V, `vocab_size`) tokens. [N, M].

    It runs in the autocast type where autocast is on, else in the type of the teacher's weights. A mixture
    has no product: its logs of probabilities are logits as good as any.
    """
    if isinstance(teacher, MixedTeacher):
        return _mix(teacher, min(vocab_size, *(part.weight_VD.shape[0] for part in teacher.parts)))
    weight_MD = teacher.weight_VD[:vocab_size].detach()
    bias_M = None if teacher.bias_V is None else teacher.bias_V[:vocab_size].detach()
    return torch.nn.functional.linear(teacher.hidden_ND.detach().to(weight_MD.dtype), weight_MD, bias_M)


def finish_logits_(product_NM: Tensor, teacher: WholeTeacher, dtype: torch.dtype) -> Tensor:
    """The product as the teacher's logits in `dtype`: scaled, then soft-capped, where its family does so."""
    logits_NM = product_NM.to(dtype)
    if isinstance(teacher, MixedTeacher):
        return logits_NM
    if teacher.scale != 1.0:
        logits_NM.mul_(teacher.scale)
    if teacher.softcap is not None:
        logits_NM.div_(teacher.softcap).tanh_().mul_(teacher.softcap)
    return logits_NM


def _mix(teacher: MixedTeacher, vocab_size: int) -> Tensor:
    """log sum_p weight_p * softmax(logits_p), part by part: two [N, M] at once however many there are."""
    mixed_NM: Tensor | None = None
    for part, log_weights_N1 in zip(teacher.parts, teacher.log_weights_NP.T.unsqueeze(-1), strict=True):
        product_NM = project_teacher(part, vocab_size)
        dtype = torch.promote_types(product_NM.dtype, torch.float32)
        logprobs_NM = torch.log_softmax(finish_logits_(product_NM, part, dtype), dim=-1)
        logprobs_NM.add_(log_weights_N1.to(dtype))
        mixed_NM = logprobs_NM if mixed_NM is None else torch.logaddexp(mixed_NM, logprobs_NM)
    assert mixed_NM is not None, "a mixture of no teachers"
    return mixed_NM


def dense_divergence_(
    log_s_NM: Tensor, log_t_NM: Tensor, terms: LossTerms, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """T^2 * divergence per row in nats, and its gradient in the student's logits.

    Both arguments are logprobs already tempered by T (a number, or one per row as [N, 1]), and are used up as
    memory.
    """
    if terms.divergence == "forward_kl":  # as `compare`, in fewer passes over the vocabulary
        t_NM = log_t_NM.exp()
        value_N1 = torch.bmm(t_NM.unsqueeze(1), log_t_NM.sub_(log_s_NM).unsqueeze(2)).squeeze(-1)
        gradient_NM = log_s_NM.exp_().sub_(t_NM)
    else:
        value_NM, pull_NM = compare(log_s_NM, log_t_NM, terms)
        value_N1 = value_NM.sum(dim=-1, keepdim=True)
        gradient_NM = project(pull_NM, log_s_NM.exp_())
    if isinstance(temperature, Tensor) or temperature != 1.0:
        value_N1, gradient_NM = temperature * temperature * value_N1, gradient_NM.mul_(temperature)
    return value_N1.squeeze(-1), gradient_NM
