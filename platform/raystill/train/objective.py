"""Objectives: pure functions from hidden states to `Loss(sum, num_tokens, metrics)`.

Shape letters: B sequences, T positions, N rows that carry loss, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from raystill.losses.chunked import chunked_loss
from raystill.losses.loss import Loss
from raystill.losses.schedules import ScheduledTerms
from raystill.losses.teachers import Teacher
from raystill.losses.terms import LossTerms
from raystill.train.batches import Batch


@dataclass(frozen=True)
class Head:
    """The output projection that turns hidden states into logits."""

    weight_VD: Tensor
    bias_V: Tensor | None


class Alignment(Protocol):
    """A term on the hidden states of the forward passes that have just been made."""

    weight: float

    def loss(self, batch: Batch) -> Loss:
        """The term, unweighted."""
        ...


# Hidden states and head are the student's: a source may ask where it puts its own mass.
Signals = Callable[[Batch, Tensor, Head], Teacher | None]


def stored_signals(batch: Batch, hidden_ND: Tensor, head: Head) -> Teacher | None:
    """The teacher that the batch holds already."""
    return batch.teacher


@dataclass(frozen=True)
class Objective:
    """What a training stage minimises. SFT is distillation without a KD term: the teacher isn't asked then.

    `signals` gives a batch its teacher; by default the one that it holds already. `alignment`, where there is
    one, adds its term.
    """

    schedule: ScheduledTerms
    signals: Signals = stored_signals
    alignment: Alignment | None = None

    def __call__(self, hidden_ND: Tensor, head: Head, batch: Batch, terms: LossTerms | None = None) -> Loss:
        """The loss of a batch by `terms`; unset: by those that the schedule ends in."""
        terms = terms or self.schedule.last
        teacher = self.signals(batch, hidden_ND, head) if terms.uses_teacher else None
        loss = chunked_loss(
            hidden_ND, head.weight_VD, batch.target_ids_N, terms, teacher=teacher, bias_V=head.bias_V
        )
        if self.alignment is None:
            return loss
        aligned = self.alignment.loss(batch)
        total = loss.sum + self.alignment.weight * aligned.sum
        return Loss(total, loss.num_tokens, loss.metrics | aligned.metrics)


def build_objective(
    schedule: ScheduledTerms, signals: Signals = stored_signals, alignment: Alignment | None = None
) -> Objective:
    """The objective of a stage whose terms are `schedule`."""
    return Objective(schedule, signals, alignment)
