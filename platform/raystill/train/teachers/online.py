"""Online distillation: frozen models in the training process, run on the very batch that the student sees.

Shape letters: N rows that carry loss, D hidden, V vocabulary, K logprobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from raystill.losses.teachers import DenseTeacher, Teacher
from raystill.train.batches import Batch, StepPlanner
from raystill.train.examples import ExampleSet
from raystill.train.objective import Head
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
    ) -> None:
        self._teachers = teachers
        self._planner = planner
        self._examples = examples
        self._rank = rank
        self._num_logprobs = num_logprobs

    def work(self, step: int) -> StepWork:
        """The planned rows, as they are stored."""
        return StepWork(self._planner.plan(step, self._rank), self._examples)

    def signals(self, batch: Batch, hidden_ND: Tensor, head: Head) -> Teacher | None:
        """Whole distributions, or those at the best tokens of teacher and student."""
        if batch.num_tokens == 0:
            return None
        model = self._teachers[0].model
        teacher_head = model.head()
        dense = DenseTeacher(model.hidden_states(batch), teacher_head.weight_VD, teacher_head.bias_V)
        if self._num_logprobs is None:
            return dense
        return pick_union_topk(dense, hidden_ND.detach(), head, self._num_logprobs)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the teachers never change."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Nothing to restore."""

    def metrics(self) -> dict[str, float]:
        """Nothing to say."""
        return {}

    def close(self) -> None:
        """Nothing to close."""
