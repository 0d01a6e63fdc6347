from __future__ import annotations

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


def test_both_of_our_sides_are_exact_and_the_coarse_one_is_below() -> None:
    losses = make_losses(make_problem(CASE), compiled=False)
    assert 0 < float(losses[OURS]().detach()) <= float(losses[DENSE]().detach())
    assert max(measure_errors(CASE, (OURS, DENSE)).values()) < 1e-5
