"""Which rows make up a step, and their tensors.

The rows of a step depend on (seed, step, rows per step) alone (`order.RowOrder`). Padded, rows of a step are
about as long as each other and are cut into micro-batches as they come. Packed, they lie end to end in as few
sequences as hold them, each of at most the tokens that a padded micro-batch may have; the sequences are
balanced, so that workers and micro-batches have the same work. Workers take turns at the micro-batches, so 2
workers with half the accumulation see the same steps as 1. Nothing is kept between steps: a resumed run
continues at step s by asking for step s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raystill.losses.teachers import Teacher
from raystill.train.collate_teacher import collate_teacher
from raystill.train.examples import ExampleSet
from raystill.train.order import RowFacts, RowOrder
from raystill.train.settings import TrainSettings

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `loss_index_N` points into the flattened [B * T] positions.

    Right-padded: under a causal mask no real position sees the padding to its right, so there is no attention
    mask. Packed (B is 1): `row_lengths` says how many positions each row has, one after the other.
    `row_sources` and `row_num_targets` say of each row where its prompt came from and how many of the N are
    its own; `sum_squares` adds up the squares of the rows' lengths in tokens.
    """

    input_ids_BT: Tensor
    loss_index_N: Tensor
    target_ids_N: Tensor
    teacher: Teacher | None
    num_real_tokens: int
    sum_squares: int = 0
    row_lengths: tuple[int, ...] | None = None
    row_sources: tuple[str, ...] = ()
    row_num_targets: tuple[int, ...] = ()

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

    def __init__(self, examples: ExampleSet, settings: TrainSettings, group_size: int | None = None) -> None:
        """`group_size` is how many workers there are now, where they may be fewer than the settings say.

        Raises ConfigError for a curriculum that leaves a phase or a source without rows.
        """
        self._group_size = group_size or settings.num_workers
        self.examples = examples
        self._lengths = examples.lengths
        self._loss_tokens = examples.num_loss_tokens
        self._settings = settings
        self.steps_per_epoch = -(-len(examples) // settings.rows_per_step)
        self._order = RowOrder(
            RowFacts(examples.lengths, examples.sources, examples.source_names),
            settings.curriculum,
            seed=settings.data_seed,
            rows_per_step=settings.rows_per_step,
            total_steps=settings.total_steps(len(examples)),
            sort_by_length=not settings.packed,
        )

    def epoch_of(self, step: int) -> int:
        """The epoch that step `step` (counted from 0) belongs to."""
        return step // self.steps_per_epoch

    def plan(self, step: int, rank: int) -> StepPlan:
        """Step `step` (counted from 0) as worker `rank` sees it."""
        rows = self._order.rows(step)
        micro_batches = cut_rows(rows, self._lengths, self._settings)
        return StepPlan(micro_batches[rank :: self._group_size], int(self._loss_tokens[rows].sum()))


def cut_rows(rows: IndexArray, lengths: IndexArray, settings: TrainSettings) -> list[IndexArray]:
    """The micro-batches of `rows`, over all workers."""
    if settings.packed:
        capacity = settings.micro_batch_rows * settings.max_seq_len
        return pack_rows(rows, lengths, capacity, settings.num_workers)
    size = settings.micro_batch_rows
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def pack_rows(rows: IndexArray, lengths: IndexArray, capacity: int, multiple_of: int = 1) -> list[IndexArray]:
    """Distribute `rows` over as few sequences of at most `capacity` tokens as there must be, balanced.

    Longest first, each to the sequence with the fewest tokens; one more sequence where that overflows. Their
    number is a multiple of `multiple_of` where there are rows enough. A row above `capacity` is alone.
    """
    sizes = lengths[rows] - 1
    longest_first = np.argsort(-sizes, kind="stable")
    least = -(-int(sizes.sum()) // capacity)
    for count in range(max(-(-least // multiple_of), 1) * multiple_of, len(rows), multiple_of):
        loads = np.zeros(count, dtype=np.int64)
        sequences: list[list[int]] = [[] for _ in range(count)]
        for place in longest_first:
            lightest = int(loads.argmin())
            sequences[lightest].append(place)
            loads[lightest] += sizes[place]
        if loads.max() <= capacity:
            return [rows[np.sort(np.array(sequence))] for sequence in sequences]
    return [rows[place : place + 1] for place in range(len(rows))]


def plan_evaluation(
    examples: ExampleSet, settings: TrainSettings, rank: int, group_size: int
) -> list[IndexArray]:
    """The micro-batches of a whole held-out set that worker `rank` of `group_size` takes, longest first."""
    longest_first = np.argsort(-examples.lengths, kind="stable")
    size = settings.rows_per_step
    windows = [longest_first[start : start + size] for start in range(0, len(longest_first), size)]
    batches = [batch for rows in windows for batch in cut_rows(rows, examples.lengths, settings)]
    return batches[rank::group_size]


def collate(
    examples: ExampleSet, rows: IndexArray, pad_id: int, device: torch.device, *, packed: bool = False
) -> Batch:
    """The tensors of `rows`: inputs are all tokens but a row's last, targets the tokens that carry loss."""
    lengths = examples.lengths[rows] - 1
    width = int(lengths.sum() if packed else lengths.max())
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if packed else np.arange(len(rows)) * width
    input_ids_P = np.full(width if packed else width * len(rows), pad_id, dtype=np.int64)
    positions: list[IndexArray] = []
    targets: list[npt.NDArray[np.int32]] = []
    for row, start, length in zip(rows.tolist(), starts.tolist(), lengths.tolist(), strict=True):
        tokens, places = examples.tokens(row), examples.target_places(row)
        input_ids_P[start : start + length] = tokens[:-1]
        positions.append(places + (start - 1))
        targets.append(tokens[places])

    def tensor(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Batch(
        input_ids_BT=tensor(input_ids_P.reshape(-1, width)),
        loss_index_N=tensor(np.concatenate(positions)),
        target_ids_N=tensor(np.concatenate(targets).astype(np.int64)),
        teacher=collate_teacher(examples, rows, device),
        num_real_tokens=int(lengths.sum()),
        sum_squares=int((examples.lengths[rows] ** 2).sum()),
        row_lengths=tuple(lengths.tolist()) if packed else None,
        row_sources=tuple(examples.source_names[number] for number in examples.sources[rows].tolist()),
        row_num_targets=tuple(len(part) for part in targets),
    )
