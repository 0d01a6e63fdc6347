"""Frozen models that teach in process: a checkpoint of their own, or the student with its adapter off.

Shape letters: N rows that carry loss, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from raystill.train.batches import Batch
from raystill.train.objective import Head
from raystill.train.student import Student


class FrozenModel(Protocol):
    """Where the logits of an online teacher come from: logits = head(hidden states)."""

    def hidden_states(self, batch: Batch) -> Tensor:
        """[N, D] at the batch's rows that carry loss, without a graph."""
        ...

    def head(self) -> Head:
        """Its output projection; its vocabulary may be padded otherwise than the student's."""
        ...


class CheckpointTeacher:
    """A model of its own, in eval mode, with no gradients anywhere."""

    def __init__(self, causal_lm: Any) -> None:
        causal_lm.requires_grad_(False)
        causal_lm.eval()
        self._model = Student(causal_lm, causal_lm)

    @property
    def causal_lm(self) -> Any:
        """The transformers model."""
        return self._model.causal_lm

    def hidden_states(self, batch: Batch) -> Tensor:
        """[N, D], without a graph."""
        with torch.no_grad():
            return _hidden_states(self._model, batch)

    def head(self) -> Head:
        """Its own output projection."""
        return self._model.head()


class AdapterOffTeacher:
    """The student's own base: the same weights with the LoRA adapter switched off, so no second copy."""

    def __init__(self, student: Student) -> None:
        self._student = student

    def hidden_states(self, batch: Batch) -> Tensor:
        """[N, D], without a graph."""
        with torch.no_grad(), adapter_off(self._student):
            return _hidden_states(self._student, batch)

    def head(self) -> Head:
        """The projection that the student started with (`modules_to_save` trains a copy of it)."""
        layer: Any = self._student.causal_lm.get_output_embeddings()
        layer = getattr(layer, "original_module", layer)
        return Head(layer.weight.detach(), getattr(layer, "bias", None))


@contextmanager
def adapter_off(student: Student) -> Iterator[None]:
    """The adapted student as its base was, without dropout; as it trains again afterwards."""
    network: Any = student.network
    was_training = network.training
    network.eval()
    try:
        with network.disable_adapter():
            yield
    finally:
        network.train(was_training)


def _hidden_states(model: Student, batch: Batch) -> Tensor:
    """As the training step asks the student."""
    return model.hidden_states(batch.input_ids_BT, batch.loss_index_N, batch.row_lengths)
