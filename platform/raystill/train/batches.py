"""Which rows make up a step, and their tensors.

The global order depends on (seed, epoch, rows per step) alone: a permutation, cut into windows, sorted by
length inside a window so that rows of a batch are about as long as each other, batches shuffled within the
window. Workers take turns at the micro-batches of a step, so 2 workers with half the accumulation see the
same steps as 1. Nothing is kept between steps: a resumed run continues at step s by asking for step s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raystill.losses.teachers import Teacher
from raystill.train.collate_teacher import collate_teacher
from raystill.train.examples import ExampleSet
from raystill.train.settings import TrainSettings

_WINDOW_STEPS = 50

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One micro-batch, right-padded. `loss_index_N` points into the flattened [B * T] positions.

    Under a causal mask no real position sees the padding to its right, so there is no attention mask.
    """

    input_ids_BT: Tensor
    loss_index_N: Tensor
    target_ids_N: Tensor
    teacher: Teacher | None
    num_real_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens that carry loss."""
        return int(self.target_ids_N.shape[0])

    @property
    def num_raw_tokens(self) -> int:
        """Positions computed, padding included."""
        return int(self.input_ids_BT.numel())


@dataclass(frozen=True)
class StepPlan:
    """The rows of one optimizer step: this worker's micro-batches, and the tokens of all workers."""

    micro_batches: list[IndexArray]
    num_tokens: int


class StepPlanner:
    """Plans any step of a run from its number alone."""

    def __init__(self, examples: ExampleSet, settings: TrainSettings) -> None:
        self._lengths = examples.lengths
        self._loss_tokens = examples.num_loss_tokens
        self._settings = settings
        self.steps_per_epoch = -(-len(examples) // settings.rows_per_step)
        # Only the current epoch's order is needed; a bound method's cache would keep `self` alive.
        self._epoch_order = lru_cache(maxsize=2)(self._compute_epoch_order)

    def epoch_of(self, step: int) -> int:
        """The epoch that step `step` (counted from 0) belongs to."""
        return step // self.steps_per_epoch

    def plan(self, step: int, rank: int) -> StepPlan:
        """Step `step` (counted from 0) as worker `rank` sees it."""
        settings = self._settings
        rows = self._epoch_order(self.epoch_of(step))[step % self.steps_per_epoch]
        size = settings.micro_batch_rows
        micro_batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return StepPlan(micro_batches[rank :: settings.num_workers], int(self._loss_tokens[rows].sum()))

    def _compute_epoch_order(self, epoch: int) -> list[IndexArray]:
        generator = np.random.default_rng([self._settings.data_seed, epoch])
        permutation = generator.permutation(len(self._lengths))
        rows_per_step = self._settings.rows_per_step
        window = rows_per_step * _WINDOW_STEPS
        steps: list[IndexArray] = []
        for start in range(0, len(permutation), window):
            rows = permutation[start : start + window]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches = [rows[first : first + rows_per_step] for first in range(0, len(rows), rows_per_step)]
            steps += [batches[index] for index in generator.permutation(len(batches))]
        return steps


def plan_evaluation(examples: ExampleSet, settings: TrainSettings, rank: int) -> list[IndexArray]:
    """This worker's micro-batches of a whole held-out set, longest first."""
    rows = np.argsort(-examples.lengths, kind="stable")
    size = settings.micro_batch_rows
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return batches[rank :: settings.num_workers]


def collate(examples: ExampleSet, rows: IndexArray, pad_id: int, device: torch.device) -> Batch:
    """The tensors of `rows`: inputs are all tokens but a row's last, targets its completion's tokens."""
    lengths = examples.lengths[rows] - 1
    width = int(lengths.max())
    input_ids_BT = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions: list[IndexArray] = []
    targets: list[npt.NDArray[np.int32]] = []
    for place, row in enumerate(rows):
        tokens = examples.tokens(row)
        first_target = examples.first_target(row)
        input_ids_BT[place, : len(tokens) - 1] = tokens[:-1]
        positions.append(np.arange(first_target - 1, len(tokens) - 1) + place * width)
        targets.append(tokens[first_target:])

    def tensor(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Batch(
        input_ids_BT=tensor(input_ids_BT),
        loss_index_N=tensor(np.concatenate(positions)),
        target_ids_N=tensor(np.concatenate(targets).astype(np.int64)),
        teacher=collate_teacher(examples, rows, device),
        num_real_tokens=int(lengths.sum()),
    )
