"""The online teachers of a run as one: each token's share of each model, and what they say together.

Shape letters: N rows that carry loss, P teachers, D hidden, V vocabulary, K best tokens of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raystill.errors import ConfigError
from raystill.losses.teachers import DenseTeacher, MixedTeacher, TopKTeacher, WholeTeacher
from raystill.train.batches import Batch
from raystill.train.objective import Head
from raystill.train.teachers.frozen import FrozenModel
from raystill.train.teachers.union_topk import score_union


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen model, its share in the mixture, and the prompt sources whose rows it teaches (empty: all)."""

    name: str
    model: FrozenModel
    weight: float = 1.0
    sources: frozenset[str] = frozenset()


class Panel(Protocol):
    """Online teachers, wherever they compute."""

    @property
    def vocab_size(self) -> int:
        """Tokens that all of them have a logit for."""
        ...

    def announce(self, batch: Batch) -> None:
        """The batch that they will be asked about next: teachers elsewhere begin with it."""
        ...

    def whole(self, batch: Batch) -> WholeTeacher:
        """Whole distributions at the batch's rows that carry loss."""
        ...

    def at_best(self, batch: Batch, student_ids_NK: Tensor, vocab_size: int) -> TopKTeacher:
        """The distributions over the first `vocab_size` tokens, at their own K best and at the student's."""
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


@dataclass(frozen=True)
class PanelStates:
    """What the teachers that teach a row of a batch have computed.

    `used` are their places among all, in order; shares are each token's, as logs, and None where one model
    teaches all rows.
    """

    used: tuple[int, ...]
    hidden_ND: tuple[Tensor, ...]
    log_weights_NP: Tensor | None

    def to(self, device: torch.device) -> PanelStates:
        """The same on `device`."""
        shares = None if self.log_weights_NP is None else self.log_weights_NP.to(device)
        return PanelStates(self.used, tuple(part.to(device) for part in self.hidden_ND), shares)

    def under(self, heads: Sequence[Head]) -> WholeTeacher:
        """The distributions, given the heads of all teachers."""
        parts = tuple(
            DenseTeacher(hidden_ND, heads[index].weight_VD, heads[index].bias_V)
            for index, hidden_ND in zip(self.used, self.hidden_ND, strict=True)
        )
        return parts[0] if self.log_weights_NP is None else MixedTeacher(parts, self.log_weights_NP)


class LocalPanel:
    """`Panel` of models in this process."""

    def __init__(self, teachers: Sequence[OnlineTeacher]) -> None:
        self._teachers = teachers

    @property
    def vocab_size(self) -> int:
        """The smallest head's."""
        return min(head.weight_VD.shape[0] for head in self.heads())

    def announce(self, batch: Batch) -> None:
        """Nothing: there is no one else to do it meanwhile."""

    def states(self, batch: Batch) -> PanelStates:
        """One teacher as it is; of several those that teach a row of the batch."""
        teachers = self._teachers
        if len(teachers) == 1 and not teachers[0].sources:
            return PanelStates((0,), (teachers[0].model.hidden_states(batch),), None)
        log_weights_NP = routed_log_weights(teachers, batch).to(batch.target_ids_N.device)
        is_used_P = log_weights_NP.isfinite().any(dim=0).tolist()
        used = [index for index, is_used in enumerate(is_used_P) if is_used]
        hidden_ND = tuple(teachers[index].model.hidden_states(batch) for index in used)
        return PanelStates(tuple(used), hidden_ND, log_weights_NP[:, used] if len(used) > 1 else None)

    def heads(self) -> list[Head]:
        """Output projections of all teachers."""
        return [teacher.model.head() for teacher in self._teachers]

    def whole(self, batch: Batch) -> WholeTeacher:
        """Whole distributions, made here and now."""
        return self.states(batch).under(self.heads())

    def at_best(self, batch: Batch, student_ids_NK: Tensor, vocab_size: int) -> TopKTeacher:
        """The same at the best tokens of both sides."""
        return score_union(self.whole(batch), student_ids_NK, vocab_size)

    def close(self) -> None:
        """Nothing to close."""


def routed_log_weights(teachers: Sequence[OnlineTeacher], batch: Batch) -> Tensor:
    """[N, P] natural logs of each teacher's share of each token, by the source of the token's row.

    Raises ConfigError for a row that no teacher is for.
    """
    shares = {source: _log_shares(teachers, source) for source in set(batch.row_sources)}
    rows_RP = torch.stack([shares[source] for source in batch.row_sources])
    return rows_RP.repeat_interleave(torch.tensor(batch.row_num_targets), dim=0)


def _log_shares(teachers: Sequence[OnlineTeacher], source: str) -> Tensor:
    weights = [t.weight if not t.sources or source in t.sources else 0.0 for t in teachers]
    if sum(weights) == 0:
        raise ConfigError(
            f"no online teacher is for rows of the source {source!r}",
            where="train.distillation.teacher.models",
            fix="name it in one of the models' `sources`, or leave that list empty for one of them",
        )
    return (torch.tensor(weights) / sum(weights)).log()
