"""The resume benchmark: its verdicts, and a tiny run through every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raystill.bench import resume, resume_steps
from raystill.bench.own_process import run_in_own_process
from raystill.bench.resume import QUICK, flat_row, measure, resume_rows


def test_a_resume_is_judged_by_time_memory_and_what_is_pending() -> None:
    rows = resume_rows("case", {"seconds": 9.9, "peak_mb": 501.0, "pending": 999}, 1000)
    assert [(row.metric, row.met) for row in rows] == [
        ("seconds", True),
        ("peak MB", False),
        ("pending", False),
    ]


def test_flat_means_hardly_more_for_a_hundred_times_the_rows() -> None:
    assert flat_row("case", (10, 100.0), (1000, 125.0)).met
    grown = flat_row("case", (10, 100.0), (1000, 150.0))
    assert (grown.met, grown.ratio, grown.peer_name) == (False, 1.5, "10 rows")


def step_here(*arguments: Any) -> dict[str, Any]:
    """Most steps need no process of their own to be right, and starting one takes seconds."""
    step, *rest = map(str, arguments)
    if step in ("journal", "fsync"):  # they end their process, or leave it changed
        return run_in_own_process("raystill.bench.resume_steps", [step, *rest])
    return resume_steps._STEPS[step](*rest)


def test_a_tiny_run_loses_and_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_step", step_here)
    sizes = replace(
        QUICK,
        rows=1500,
        partitions=2,
        rows_per_part=500,
        prompts=1200,
        journal_records=300,
        segment_records=100,
        fsync_rows=100,
        capture_rows=(100, 300),
    )
    found = {(row.case, row.metric): row for row in measure(sizes)}
    assert found["1,500 rows, nothing to do", "pending"].ours == 0
    assert found["1,500 rows, 1,000 added", "pending"].ours == 1000
    for case, pending in (("listed", 1200), ("unchanged", 0), ("1,000 added", 1000)):
        assert found[f"1,200 prompts, {case}", "pending"].ours == pending
    assert found["300 journal records recovered", "rows"].ours == 300
    assert found["journal, fsync", "rows/s"].ours > 0.0
    assert all(row.ours > 10.0 for (_, metric), row in found.items() if metric == "peak MB")
