from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from raystill.errors import ConfigError
from raystill.train.curriculum import Curriculum
from raystill.train.order import RowFacts, RowOrder

_ROWS = 90


def facts() -> RowFacts:
    lengths = np.random.default_rng(0).integers(3, 100, _ROWS)
    return RowFacts(lengths, np.repeat([0, 1, 2], [60, 20, 10]), ("code", "math", "tools"))


def order(curriculum: Curriculum | None = None, *, steps: int = 40, sort: bool = False) -> RowOrder:
    return RowOrder(
        facts(),
        curriculum or Curriculum(),
        seed=3,
        rows_per_step=8,
        total_steps=steps,
        sort_by_length=sort,
    )


@pytest.mark.parametrize("sort", [False, True])
def test_an_epoch_is_every_row_once(sort: bool) -> None:
    one = order(sort=sort)
    steps = one.steps_per_epoch()
    for epoch in range(2):
        rows = np.concatenate([one.rows(epoch * steps + step) for step in range(steps)])
        assert sorted(rows) == list(range(_ROWS))


def test_a_step_needs_no_history() -> None:
    curriculum = Curriculum((40, 100), (10,), {"code": 0.5}, {"code": 0.1})
    walked = order(curriculum)
    seen = [walked.rows(step).tolist() for step in range(40)]
    for step in (39, 10, 9, 0):
        assert order(curriculum).rows(step).tolist() == seen[step]


def test_long_rows_wait_for_their_phase() -> None:
    one = order(Curriculum((30, 60, 100), (10, 20)), steps=60)
    lengths = facts().lengths
    longest = [int(lengths[one.rows(step)].max()) for step in range(60)]
    assert max(longest[:10]) <= 30 < max(longest[10:20]) <= 60 < max(longest[20:])
    short = set(np.flatnonzero(lengths <= 30).tolist())
    steps = one.steps_per_epoch(0)
    assert {int(row) for step in range(min(steps, 10)) for row in one.rows(step)} <= short
    final = {int(row) for step in range(20, 20 + one.steps_per_epoch(20)) for row in one.rows(step)}
    assert final == set(range(_ROWS))


def test_a_mixture_keeps_its_shares_in_every_stretch() -> None:
    one = order(Curriculum(mix={"tools": 0.5, "math": 0.25}))
    names = facts()
    for start in range(0, 40, 4):
        rows = np.concatenate([one.rows(step) for step in range(start, start + 4)])
        counts = Counter(names.source_names[source] for source in names.sources[rows])
        assert abs(counts["tools"] - 16) <= 1 and abs(counts["math"] - 8) <= 1
    tools = [int(row) for step in range(40) for row in one.rows(step) if row >= 80]
    for start in range(0, 150, 10):  # every ten turns of a source of ten rows are a permutation of it
        assert sorted(tools[start : start + 10]) == list(range(80, 90))


def test_shares_move_to_their_end() -> None:
    one = order(Curriculum(mix={"tools": 1.0}, mix_end={"tools": 0.0}), steps=100)
    sources = facts().sources
    share = [float((sources[one.rows(step)] == 2).mean()) for step in range(100)]
    assert np.mean(share[:10]) > 0.9 and np.mean(share[-10:]) < 0.1
    assert abs(np.mean(share) - 0.5) < 0.03


def test_unnamed_sources_share_what_is_left_by_their_rows() -> None:
    one = order(Curriculum(mix={"tools": 0.2}))
    rows = np.concatenate([one.rows(step) for step in range(40)])
    counts = Counter(facts().sources[rows].tolist())
    assert counts[2] == pytest.approx(64, abs=1)
    assert counts[0] == pytest.approx(192, abs=2) and counts[1] == pytest.approx(64, abs=2)


def test_what_has_no_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="poetry"):
        order(Curriculum(mix={"poetry": 0.5})).rows(0)
    with pytest.raises(ConfigError, match="no row has at most 2"):
        order(Curriculum((2, 100), (10,)))
