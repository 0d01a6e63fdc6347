"""Online distillation: frozen models run on the very batch that the student sees, and nothing is stored.

Shape letters: N rows that carry loss, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from raystill.losses.teachers import Teacher
from raystill.train.batches import Batch, StepPlanner
from raystill.train.clock import StepClock
from raystill.train.examples import ExampleSet
from raystill.train.objective import Head
from raystill.train.teachers.aligner import HiddenAligner
from raystill.train.teachers.panel import Panel
from raystill.train.teachers.source import StepWork
from raystill.train.teachers.union_topk import best_tokens


class OnlineSignals:
    """`SignalSource` on stored text: distributions are made for each batch and then forgotten."""

    def __init__(
        self,
        panel: Panel,
        planner: StepPlanner,
        examples: ExampleSet,
        rank: int,
        *,
        num_logprobs: int | None,
        alignment: HiddenAligner | None = None,
        clock: StepClock | None = None,
    ) -> None:
        self._panel = panel
        self._planner = planner
        self._examples = examples
        self._rank = rank
        self._num_logprobs = num_logprobs
        self.alignment = alignment
        self._clock = clock or StepClock()
        self.teacher_passes = 0

    def work(self, step: int) -> StepWork:
        """The planned rows, as they are stored."""
        return StepWork(self._planner.plan(step, self._rank), self._examples)

    def announce(self, batch: Batch) -> None:
        """Let teachers that have a process of their own begin."""
        if batch.num_tokens > 0:
            self._panel.announce(batch)

    def signals(self, batch: Batch, hidden_ND: Tensor, head: Head) -> Teacher | None:
        """Whole distributions, or those at the best tokens of teacher and student."""
        if batch.num_tokens == 0:
            return None
        self.teacher_passes += 1
        with self._clock.measure("teacher"):
            if self._num_logprobs is None:
                return self._panel.whole(batch)
            shared = min(self._panel.vocab_size, head.weight_VD.shape[0])
            student_ids_NK = best_tokens(hidden_ND, head, shared, self._num_logprobs)
            return self._panel.at_best(batch, student_ids_NK, shared)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the teachers never change."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Nothing to restore."""

    def metrics(self) -> dict[str, float]:
        """Nothing to say."""
        return {}

    def close(self) -> None:
        """Take the projections of an alignment out of the student, and end the teachers' processes."""
        if self.alignment is not None:
            self.alignment.remove()
        self._panel.close()
