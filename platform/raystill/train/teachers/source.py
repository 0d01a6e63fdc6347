"""What the training loop asks of a teacher source, and the source that asks nobody: the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from raystill.losses.teachers import Teacher
from raystill.train.batches import Batch, StepPlan
from raystill.train.examples import ExampleSet
from raystill.train.objective import Alignment, Head


@dataclass(frozen=True)
class StepWork:
    """One optimizer step of this worker: a plan, and the rows that it points into."""

    plan: StepPlan
    examples: ExampleSet


class SignalSource(Protocol):
    """Gives every micro-batch its teacher. Chosen once per run; the loop never asks which one it has."""

    @property
    def alignment(self) -> Alignment | None:
        """The term on hidden states, where `losses.hidden` asks for one."""
        ...

    @property
    def teacher_passes(self) -> int:
        """Batches that a teacher in memory was asked about so far."""
        ...

    def work(self, step: int) -> StepWork:
        """What step `step` (counted from 0) trains on. Called once per step and in order, by all workers."""
        ...

    def announce(self, batch: Batch) -> None:
        """The batch that `signals` is asked about next, told before the student's own forward pass."""
        ...

    def signals(self, batch: Batch, hidden_ND: Tensor, head: Head) -> Teacher | None:
        """The teacher's distributions at the batch's rows that carry loss; None where there is no KD term.

        `hidden_ND` and `head` are the student's, whose logits at these rows are their product.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for the same steps to follow; empty where nothing."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue at `step` from what `tensors` gave."""
        ...

    def metrics(self) -> dict[str, float]:
        """Values to log since the last call."""
        ...

    def close(self) -> None:
        """Let go of processes, and take out of the student what was put into it for training alone."""
        ...
