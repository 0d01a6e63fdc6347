"""What is known about a teacher's distribution at every row that carries loss: three kinds of signal.

Shape letters: N rows that carry loss, V vocabulary, K stored logprobs, J = K + 1 outcomes (the K tokens and
"anything else"), U ids per row of a sample, D the teacher's hidden size.

Each kind cuts itself into rows (`rows`), so that the kernel sees one chunk at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Far below one draw of the most that are stored, far above what adding shares up rounds away.
_ROUNDING = 4e-6


@dataclass(frozen=True)
class TopKTeacher:
    """The teacher's K best tokens and the mass of all others.

    `ids_NK` int64; `logprobs_NK` natural logs, where -inf marks an absent entry (its id must still be a valid
    token, and may repeat another of its row); `tail_logprob_N` the log of the mass of all other tokens.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    tail_logprob_N: Tensor

    def coarse_logprobs(self, dtype: torch.dtype) -> Tensor:
        """[N, J] in `dtype`, as stored: rounding may leave the mass a little off 1."""
        return torch.cat([self.logprobs_NK, self.tail_logprob_N.unsqueeze(-1)], dim=-1).to(dtype)

    def rows(self, start: int, stop: int) -> TopKTeacher:
        """A view of the rows from `start` to `stop`."""
        return TopKTeacher(
            self.ids_NK[start:stop], self.logprobs_NK[start:stop], self.tail_logprob_N[start:stop]
        )


@dataclass(frozen=True)
class SampledTeacher:
    """Draws from the teacher's whole distribution (random-sampling KD, arXiv 2503.16870).

    `ids_NU` int64, distinct within a row; `weights_NU` the share of the row's draws that each id got (counts
    over their number), 0 for padding, whose id must still be a valid token. Shares that sum to less than 1
    leave the rest to tokens that the student doesn't have, which count as tail. The weights are an unbiased
    estimate of every probability, so the gradient of forward KL, which is linear in them, is unbiased too.
    The value is KL(draws || student), above KL(teacher || student) by the entropy that the draws lack.
    """

    ids_NU: Tensor
    weights_NU: Tensor

    def rows(self, start: int, stop: int) -> SampledTeacher:
        """A view of the rows from `start` to `stop`."""
        return SampledTeacher(self.ids_NU[start:stop], self.weights_NU[start:stop])

    def as_topk(self) -> TopKTeacher:
        """The draws as a distribution: their ids, and what they leave (nothing, as a rule) as the tail."""
        rest_N = 1.0 - self.weights_NU.sum(dim=-1)
        rest_N = torch.where(rest_N < _ROUNDING, 0.0, rest_N)
        return TopKTeacher(self.ids_NU, self.weights_NU.log(), rest_N.log())


@dataclass(frozen=True)
class DenseTeacher:
    """The teacher's whole distribution, as hidden states and the head that turns them into logits.

    Logits are made chunk by chunk. `hidden_ND` and `weight_VD` are the teacher's own (its D and V may differ
    from the student's), `bias_V` where its head has one, `softcap` where it squashes logits to
    softcap * tanh(logits / softcap), `scale` what it multiplies them with before that. Teacher and student
    are compared over the vocabulary that both have, `min(V, student's V)`: a padded head is sliced, which
    renormalises what is left. No gradient flows into a teacher.
    """

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def rows(self, start: int, stop: int) -> DenseTeacher:
        """A view of the rows from `start` to `stop`."""
        return replace(self, hidden_ND=self.hidden_ND[start:stop])


@dataclass(frozen=True)
class MixedTeacher:
    """Several whole distributions as one: their mean in probability space, with weights of each row's own.

    `log_weights_NP` has a natural log per row and part, summing to 1 over the parts; -inf leaves a part out
    of a row, whose hidden states there must only be finite. The parts are compared over the vocabulary that
    all of them have.
    """

    parts: tuple[DenseTeacher, ...]
    log_weights_NP: Tensor

    def rows(self, start: int, stop: int) -> MixedTeacher:
        """A view of the rows from `start` to `stop`."""
        parts = tuple(part.rows(start, stop) for part in self.parts)
        return MixedTeacher(parts, self.log_weights_NP[start:stop])


WholeTeacher = DenseTeacher | MixedTeacher
Teacher = TopKTeacher | SampledTeacher | WholeTeacher
