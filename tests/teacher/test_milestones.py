"""Workers report as often in a second attempt as in the first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.teacher.milestones import Milestones


def _reached(num_rows: int, steps: list[int]) -> list[int]:
    milestones = Milestones(num_rows)
    with ThreadPoolExecutor(1) as waiter:
        reached = waiter.submit(lambda: list(milestones.wait_each()))
        for rows in steps:
            milestones.advance(rows)
        milestones.end()
        return reached.result(timeout=60)


@given(st.integers(1, 300), st.integers(0, 300))
def test_every_attempt_reports_at_the_same_rows(num_rows: int, committed: int) -> None:
    first = _reached(num_rows, [1] * num_rows)
    before = min(committed, num_rows)
    assert _reached(num_rows, [before] + [1] * (num_rows - before)) == first
    assert len(first) == min(16, num_rows) - 1
    assert first == sorted(set(first))
    assert all(0 < rows < num_rows for rows in first)


@pytest.mark.parametrize("finished", [0, 3, 9])
def test_a_shard_that_fails_ends_the_waiting(finished: int) -> None:
    assert all(rows <= finished for rows in _reached(10, [1] * finished))
    assert len(_reached(10, [1] * finished)) == finished
