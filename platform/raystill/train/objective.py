"""Objectives: pure functions from hidden states to `Loss(sum, num_tokens, metrics)`.

Shape letters: B sequences, T positions, N rows that carry loss, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from raystill.errors import ConfigError
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

    def loss(self, batch: Batch, weights_N: Tensor | None) -> Loss:
        """The term without its own weight; `weights_N` multiplies that of each token."""
        ...


# Hidden states and head are the student's: a source may ask where it puts its own mass.
Signals = Callable[[Batch, Tensor, Head], Teacher | None]


def announce_nothing(batch: Batch) -> None:
    """Nobody waits for a batch."""


def stored_signals(batch: Batch, hidden_ND: Tensor, head: Head) -> Teacher | None:
    """The teacher that the batch holds already."""
    return batch.teacher


@dataclass(frozen=True)
class Objective:
    """What a training stage minimises. SFT is distillation without a KD term: the teacher isn't asked then.

    `signals` gives a batch its teacher; by default the one that it holds already. `announce` is told of the
    batch before the student's forward pass, where a KD term is to come. `alignment`, where there is
    one, adds its term. `source_weights` multiply all terms on tokens of rows from a source; 1 where it isn't
    named. With `counts_right` the loss has the metric of that name.
    """

    schedule: ScheduledTerms
    signals: Signals = stored_signals
    alignment: Alignment | None = None
    source_weights: Mapping[str, float] = field(default_factory=dict)
    announce: Callable[[Batch], None] = announce_nothing
    counts_right: bool = False

    def expect(self, batch: Batch, terms: LossTerms | None = None) -> None:
        """Say that the loss of `batch` by `terms` is asked for next."""
        if self._asks_teacher(terms or self.schedule.last):
            self.announce(batch)

    def __call__(self, hidden_ND: Tensor, head: Head, batch: Batch, terms: LossTerms | None = None) -> Loss:
        """The loss of a batch by `terms`; unset: by those that the schedule ends in."""
        terms = terms or self.schedule.last
        teacher = self.signals(batch, hidden_ND, head) if self._asks_teacher(terms) else None
        weights_N = token_weights(batch, self.source_weights)
        loss = chunked_loss(
            hidden_ND,
            head.weight_VD,
            batch.target_ids_N,
            terms,
            teacher=teacher,
            bias_V=head.bias_V,
            weights_N=weights_N,
            counts_right=self.counts_right,
        )
        if self.alignment is None:
            return loss
        aligned = self.alignment.loss(batch, weights_N)
        weighted = self.alignment.weight * aligned.sum
        metrics = loss.metrics | aligned.metrics | {"hidden_weighted": weighted.detach()}
        return Loss(loss.sum + weighted, loss.num_tokens, metrics)

    def _asks_teacher(self, terms: LossTerms) -> bool:
        """Whether the teacher reads a batch: an alignment follows it also where a ramp is still at 0."""
        return terms.uses_teacher or self.alignment is not None


def build_objective(
    schedule: ScheduledTerms,
    signals: Signals = stored_signals,
    alignment: Alignment | None = None,
    source_weights: Mapping[str, float] | None = None,
    announce: Callable[[Batch], None] = announce_nothing,
    counts_right: bool = False,
) -> Objective:
    """The objective of a stage whose terms are `schedule`."""
    return Objective(schedule, signals, alignment, source_weights or {}, announce, counts_right)


def token_weights(batch: Batch, source_weights: Mapping[str, float]) -> Tensor | None:
    """[N] weights of a batch's tokens, by the source of the row; None where nothing is weighted."""
    if not source_weights:
        return None
    weights_R = torch.tensor([source_weights.get(source, 1.0) for source in batch.row_sources])
    weights_N = weights_R.repeat_interleave(torch.tensor(batch.row_num_targets))
    return weights_N.to(batch.target_ids_N.device)


def require_weighted_sources(source_weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise ConfigError for the weight of a source that no row has, or where all rows would weigh nothing."""
    unknown = sorted(set(source_weights) - set(names))
    if unknown or (names and all(source_weights.get(name, 1.0) == 0 for name in names)):
        raise ConfigError(
            f"no training row is from {unknown[0]!r}" if unknown else "every source of the rows has weight 0",
            where="losses.source_weights",
            fix=f"the rows' sources are {', '.join(names)}",
        )
