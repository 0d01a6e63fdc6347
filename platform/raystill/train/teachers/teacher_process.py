"""Online teachers in a process of their own: what a Ray actor beside a training worker does.

It takes a batch, keeps what its models say of it, and answers questions about it, so that the training worker
can run the student meanwhile. All that it computes is what `LocalPanel` would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raystill.config.schema import Config
from raystill.losses.teachers import TopKTeacher
from raystill.train.batches import Batch
from raystill.train.device import autocast, set_up_torch
from raystill.train.objective import Head
from raystill.train.settings import Precision
from raystill.train.teachers.load import TeacherPlace, load_checkpoints
from raystill.train.teachers.panel import LocalPanel, PanelStates
from raystill.train.teachers.union_topk import score_union


class TeacherProcess:
    """The actor. Everything that comes in or goes out is on the CPU."""

    def load(
        self,
        config: str,
        places: Sequence[TeacherPlace],
        device: str,
        num_threads: int,
        precision: Precision,
        packed: bool,
    ) -> int:
        """Load the models; returns `Panel.vocab_size`. Raises as `load_teachers`."""
        self._device, self._precision = torch.device(device), precision
        set_up_torch(Config.model_validate_json(config), self._device, num_threads)
        self._panel = LocalPanel(load_checkpoints(places, self._device, packed=packed))
        return self._panel.vocab_size

    def heads(self) -> list[Head]:
        """Output projections of all models."""
        return [
            Head(head.weight_VD.detach().cpu(), None if head.bias_V is None else head.bias_V.detach().cpu())
            for head in self._panel.heads()
        ]

    def take(self, batch: Batch) -> None:
        """Run the models on a batch; the questions that follow are about it."""
        with autocast(self._device, self._precision):
            self._states = self._panel.states(move_batch(batch, self._device))

    def states(self, taken: None) -> PanelStates:
        """The hidden states of the batch; `taken` is what `take` gave, so that its error is this one's."""
        return self._states.to(torch.device("cpu"))

    def at_best(self, taken: None, student_ids_NK: Tensor, vocab_size: int) -> TopKTeacher:
        """The batch's distributions at the models' own best tokens and at the student's."""
        with autocast(self._device, self._precision):
            teacher = self._states.under(self._panel.heads())
            found = score_union(teacher, student_ids_NK.to(self._device), vocab_size)
        return TopKTeacher(found.ids_NK.cpu(), found.logprobs_NK.cpu(), found.tail_logprob_N.cpu())


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """What a teacher needs of a batch, on `device`."""
    tensors: dict[str, Any] = {
        name: getattr(batch, name).to(device) for name in ("input_ids_BT", "loss_index_N", "target_ids_N")
    }
    return replace(batch, **tensors, teacher=None)
