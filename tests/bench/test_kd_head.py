from __future__ import annotations

import pytest

from raystill.bench.kd_head import case_rows
from raystill.bench.kd_head_sides import (
    DENSE,
    LIGER,
    OURS,
    TRL,
    Case,
    make_losses,
    make_problem,
    measure_errors,
)

CASE = Case(12, 8, 300)


def test_a_row_is_met_only_where_its_goal_is() -> None:
    seconds = {OURS: [1.0, 9.0, 1.0], DENSE: [2.0] * 3, TRL: [5.0] * 3, LIGER: [2.0] * 3}
    errors = {OURS: 1e-7, DENSE: 1e-4, TRL: 1e-6}
    rows = case_rows(CASE, seconds, errors, {OURS: 0.01, DENSE: 1e6})
    assert [(row.peer_name, row.ratio, row.met) for row in rows if row.metric == "ms"] == [
        (TRL, 5.0, True),
        (LIGER, 2.0, True),
        (TRL, 2.5, False),
        (LIGER, 1.0, False),
    ]
    assert [row.met for row in rows if row.metric == "gradient error"] == [True, False]
    assert [row.met for row in rows if row.metric == "peak MB"] == [True, False]


def test_all_sides_compute_the_same_thing_exactly() -> None:
    for peer in ("trl", "liger_kernel"):
        pytest.importorskip(peer)
    problem = make_problem(CASE)
    losses = make_losses(problem, compiled=False)
    values = {side: float(loss().detach()) for side, loss in losses.items()}
    assert values[DENSE] == pytest.approx(values[TRL], rel=1e-4) == pytest.approx(values[LIGER], rel=1e-4)
    assert 0 < values[OURS] <= values[DENSE]
    assert max(measure_errors(CASE).values()) < 1e-5
