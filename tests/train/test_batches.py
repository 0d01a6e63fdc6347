from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raystill.train.batches import StepPlanner, collate, pack_rows, plan_evaluation
from raystill.train.examples import Example, ExampleSet
from raystill.train.settings import TrainSettings, resolve_settings


def make_examples(count: int) -> ExampleSet:
    lengths = np.random.default_rng(0).integers(3, 100, count)
    return ExampleSet([Example(np.arange(length, dtype=np.int32), 2) for length in lengths])


@pytest.fixture
def settings(empty_world: Any) -> TrainSettings:
    return resolve_settings(empty_world.config(), "distill")


def rows_of(planner: StepPlanner, step: int, workers: int) -> list[int]:
    return sorted(
        int(row) for rank in range(workers) for rows in planner.plan(step, rank).micro_batches for row in rows
    )


def test_every_row_is_seen_once_an_epoch(settings: TrainSettings) -> None:
    planner = StepPlanner(make_examples(101), settings)
    assert planner.steps_per_epoch == 13
    for epoch in range(2):
        seen = [row for step in range(13) for row in rows_of(planner, 13 * epoch + step, 1)]
        assert sorted(seen) == list(range(101))


def test_epochs_and_seeds_have_orders_of_their_own(settings: TrainSettings) -> None:
    examples = make_examples(101)
    planner = StepPlanner(examples, settings)
    other = StepPlanner(examples, replace(settings, data_seed=7))
    assert rows_of(planner, 0, 1) != rows_of(planner, 13, 1)
    assert rows_of(planner, 0, 1) != rows_of(other, 0, 1)


@pytest.mark.parametrize(("workers", "rows", "accumulation"), [(2, 4, 1), (2, 2, 2), (4, 1, 2), (1, 2, 4)])
def test_the_same_steps_however_they_are_shared(
    settings: TrainSettings, workers: int, rows: int, accumulation: int
) -> None:
    examples = make_examples(101)
    one = StepPlanner(examples, settings)
    cut = replace(settings, num_workers=workers, micro_batch_rows=rows, accumulation=accumulation)
    many = StepPlanner(examples, cut)
    for step in range(20):
        assert rows_of(one, step, 1) == rows_of(many, step, workers)
        assert one.plan(step, 0).num_tokens == many.plan(step, workers - 1).num_tokens


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("present", [1, 2, 3, 4])
def test_fewer_workers_than_there_may_be_share_the_same_steps(
    settings: TrainSettings, present: int, packed: bool
) -> None:
    """However many of at most four take part: the same rows, cut alike, each row once."""
    examples = make_examples(101)
    cut = replace(settings, num_workers=4, micro_batch_rows=2, packed=packed)
    all_four, some = StepPlanner(examples, cut), StepPlanner(examples, cut, present)
    assert some.steps_per_epoch == all_four.steps_per_epoch
    for step in range(20):
        assert rows_of(some, step, present) == rows_of(all_four, step, 4)
        cuts = [
            sorted(tuple(rows) for rank in range(count) for rows in planner.plan(step, rank).micro_batches)
            for planner, count in ((some, present), (all_four, 4))
        ]
        assert cuts[0] == cuts[1]
        assert some.plan(step, present - 1).num_tokens == all_four.plan(step, 0).num_tokens


def test_a_step_needs_no_history(settings: TrainSettings) -> None:
    examples = make_examples(101)
    walked = StepPlanner(examples, settings)
    for step in range(30):
        walked.plan(step, 0)
    jumped = StepPlanner(examples, settings)
    for one, other in zip(walked.plan(30, 0).micro_batches, jumped.plan(30, 0).micro_batches, strict=True):
        assert one.tolist() == other.tolist()


def test_batches_hold_rows_of_like_length(settings: TrainSettings) -> None:
    """Padding in a window of 50 steps is small, where random batches of 8 would waste about 40 %."""
    examples = make_examples(2000)
    planner = StepPlanner(examples, settings)
    raw = real = 0
    for step in range(planner.steps_per_epoch):
        for rows in planner.plan(step, 0).micro_batches:
            raw += int(examples.lengths[rows].max()) * len(rows)
            real += int(examples.lengths[rows].sum())
    assert 1 - real / raw < 0.04


def test_packed_rows_all_lie_in_few_balanced_sequences(settings: TrainSettings) -> None:
    lengths = np.random.default_rng(1).integers(2, 100, 64)
    sequences = pack_rows(np.arange(64), lengths, 512)
    loads = [int((lengths[rows] - 1).sum()) for rows in sequences]
    assert sorted(int(row) for rows in sequences for row in rows) == list(range(64))
    assert len(sequences) == -(-sum(loads) // 512) and max(loads) <= 512
    assert max(loads) - min(loads) < 20
    assert len(pack_rows(np.arange(64), lengths, 512, 4)) % 4 == 0
    assert [len(rows) for rows in pack_rows(np.arange(3), np.array([90, 80, 5]), 10)] == [1, 1, 1]


@pytest.mark.parametrize(("workers", "rows", "accumulation"), [(2, 4, 1), (2, 2, 2), (4, 1, 2)])
def test_packed_steps_are_the_same_however_they_are_shared(
    settings: TrainSettings, workers: int, rows: int, accumulation: int
) -> None:
    examples = make_examples(101)
    one = StepPlanner(examples, replace(settings, packed=True))
    cut = replace(
        settings, packed=True, num_workers=workers, micro_batch_rows=rows, accumulation=accumulation
    )
    many = StepPlanner(examples, cut)
    for step in range(20):
        assert rows_of(one, step, 1) == rows_of(many, step, workers)


def test_a_packed_batch_holds_the_rows_of_a_padded_one(settings: TrainSettings) -> None:
    examples, rows, cpu = make_examples(9), np.array([4, 0, 7]), torch.device("cpu")
    padded = collate(examples, rows, 0, cpu)
    packed = collate(examples, rows, 0, cpu, packed=True)
    assert packed.num_raw_tokens == packed.num_real_tokens == padded.num_real_tokens
    assert packed.row_lengths == tuple(int(n) - 1 for n in examples.lengths[rows])
    assert torch.equal(packed.target_ids_N, padded.target_ids_N)
    inputs = [batch.input_ids_BT.flatten()[batch.loss_index_N] for batch in (packed, padded)]
    assert torch.equal(*inputs)


def test_loss_on_places_in_the_prompt(settings: TrainSettings) -> None:
    example = Example(np.arange(10, dtype=np.int32), 6, prompt_targets=np.array([2, 3]))
    examples = ExampleSet([example, Example(np.arange(4, dtype=np.int32), 3)])
    assert examples.num_loss_tokens.tolist() == [6, 1]
    batch = collate(examples, np.array([1, 0]), 0, torch.device("cpu"), packed=True)
    assert batch.target_ids_N.tolist() == [3, 2, 3, 6, 7, 8, 9]
    assert batch.input_ids_BT.flatten()[batch.loss_index_N].tolist() == [2, 1, 2, 5, 6, 7, 8]


def test_evaluation_covers_every_row_once_over_all_workers(settings: TrainSettings) -> None:
    examples = make_examples(37)
    shared = replace(settings, num_workers=3)
    cut = [rows for rank in range(3) for rows in plan_evaluation(examples, shared, rank, 3)]
    seen = [int(row) for rows in cut for row in rows]
    assert sorted(seen) == list(range(37))
