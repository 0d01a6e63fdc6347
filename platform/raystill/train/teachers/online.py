"""Online distillation: frozen models in the training process, run on the very batch that the student sees.

Shape letters: N rows that carry loss, D hidden, V vocabulary, K logprobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raystill.errors import ConfigError
from raystill.losses.teachers import DenseTeacher, MixedTeacher, Teacher, WholeTeacher
from raystill.train.batches import Batch, StepPlanner
from raystill.train.examples import ExampleSet
from raystill.train.objective import Head
from raystill.train.teachers.aligner import HiddenAligner
from raystill.train.teachers.frozen import FrozenModel
from raystill.train.teachers.source import StepWork
from raystill.train.teachers.union_topk import pick_union_topk


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen model, its share in the mixture, and the prompt sources whose rows it teaches (empty: all)."""

    name: str
    model: FrozenModel
    weight: float = 1.0
    sources: frozenset[str] = frozenset()


class OnlineSignals:
    """`SignalSource` on stored text: distributions are made for each batch and then forgotten."""

    def __init__(
        self,
        teachers: Sequence[OnlineTeacher],
        planner: StepPlanner,
        examples: ExampleSet,
        rank: int,
        *,
        num_logprobs: int | None,
        alignment: HiddenAligner | None = None,
    ) -> None:
        self._teachers = teachers
        self._planner = planner
        self._examples = examples
        self._rank = rank
        self._num_logprobs = num_logprobs
        self.alignment = alignment

    def work(self, step: int) -> StepWork:
        """The planned rows, as they are stored."""
        return StepWork(self._planner.plan(step, self._rank), self._examples)

    def signals(self, batch: Batch, hidden_ND: Tensor, head: Head) -> Teacher | None:
        """Whole distributions, or those at the best tokens of teacher and student."""
        if batch.num_tokens == 0:
            return None
        teacher = self._whole(batch)
        if self._num_logprobs is None:
            return teacher
        return pick_union_topk(teacher, hidden_ND.detach(), head, self._num_logprobs)

    def _whole(self, batch: Batch) -> WholeTeacher:
        """One teacher as it is; several as a mixture, each run only where it teaches a row of the batch."""
        if len(self._teachers) == 1 and not self._teachers[0].sources:
            return _dense(self._teachers[0].model, batch)
        log_weights_NP = routed_log_weights(self._teachers, batch).to(batch.target_ids_N.device)
        used = [
            index for index in range(len(self._teachers)) if bool(log_weights_NP[:, index].isfinite().any())
        ]
        parts = tuple(_dense(self._teachers[index].model, batch) for index in used)
        return parts[0] if len(parts) == 1 else MixedTeacher(parts, log_weights_NP[:, used])

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the teachers never change."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Nothing to restore."""

    def metrics(self) -> dict[str, float]:
        """Nothing to say."""
        return {}

    def close(self) -> None:
        """Take the projections of an alignment out of the student."""
        if self.alignment is not None:
            self.alignment.remove()


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


def _dense(model: FrozenModel, batch: Batch) -> DenseTeacher:
    head = model.head()
    return DenseTeacher(model.hidden_states(batch), head.weight_VD, head.bias_V)
