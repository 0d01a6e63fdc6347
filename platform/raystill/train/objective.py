"""Objectives: pure functions from hidden states to `Loss(sum, num_tokens, metrics)`.

Shape letters: B sequences, T positions, N rows that carry loss, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from raystill.losses.chunked import chunked_loss
from raystill.losses.loss import Loss
from raystill.losses.terms import LossTerms
from raystill.train.batches import Batch


@dataclass(frozen=True)
class Head:
    """The output projection that turns hidden states into logits."""

    weight_VD: Tensor
    bias_V: Tensor | None


Objective = Callable[[Tensor, Head, Batch], Loss]


def build_objective(terms: LossTerms) -> Objective:
    """SFT where there is no KD term, else distillation: the only place where the two differ."""

    def sft(hidden_ND: Tensor, head: Head, batch: Batch) -> Loss:
        return chunked_loss(hidden_ND, head.weight_VD, batch.target_ids_N, terms, bias_V=head.bias_V)

    def distill(hidden_ND: Tensor, head: Head, batch: Batch) -> Loss:
        return chunked_loss(
            hidden_ND, head.weight_VD, batch.target_ids_N, terms, teacher=batch.teacher, bias_V=head.bias_V
        )

    return distill if terms.kl_weight > 0 else sft
