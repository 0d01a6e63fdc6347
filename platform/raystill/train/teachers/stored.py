"""The store as teacher: what a batch holds already. No model in memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from raystill.losses.teachers import Teacher
from raystill.train.batches import Batch, StepPlanner
from raystill.train.examples import ExampleSet
from raystill.train.objective import Head, stored_signals
from raystill.train.teachers.source import StepWork


class StoredSignals:
    """`SignalSource` of SFT, and of KD from the store."""

    def __init__(self, planner: StepPlanner, examples: ExampleSet, rank: int) -> None:
        self._planner = planner
        self._examples = examples
        self._rank = rank

    @property
    def alignment(self) -> None:
        """None: stored states are a signal of their own (`teacher.signals.kind: hidden`)."""
        return None

    @property
    def teacher_passes(self) -> int:
        """0: nobody is asked."""
        return 0

    def work(self, step: int) -> StepWork:
        """The planned rows, as they are stored."""
        return StepWork(self._planner.plan(step, self._rank), self._examples)

    def announce(self, batch: Batch) -> None:
        """Nothing: a batch holds its teacher."""

    def signals(self, batch: Batch, hidden_ND: Tensor, head: Head) -> Teacher | None:
        """What the store says of the batch's tokens."""
        return stored_signals(batch, hidden_ND, head)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the rows of a step follow from its number."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Nothing to restore."""

    def metrics(self) -> dict[str, float]:
        """Nothing to say."""
        return {}

    def close(self) -> None:
        """Nothing to close."""
