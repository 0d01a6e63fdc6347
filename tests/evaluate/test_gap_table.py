"""The terminal table says what the results say, and nothing is rounded to perfection."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from raystill.evaluate.gap_table import (
    build_gap_table,
    format_count,
    format_interval,
    format_percent,
    headline,
)
from raystill.evaluate.results import Estimate, GapClosed, Results, RowResult


def make_results(*, reason: str = "") -> Results:
    estimate = Estimate(value=0.9, low=0.8, high=None, n=20)
    return Results(
        run="demo[bold]",
        primary_metric="exact_match",
        num_prompts=20,
        num_prompts_without_teacher_output=0,
        num_prompts_by_task={"exact": 20},
        rows=[
            RowResult(key="teacher", label="Teacher", model="t", parameters=None, num_samples=20),
            RowResult(
                key="distill",
                label="Student after KD",
                model="d",
                parameters=601_344,
                num_samples=20,
                exact_match=estimate,
            ),
        ],
        gap_closed=[
            GapClosed(
                row="distill", metric="exact_match", estimate=None if reason else estimate, reason=reason
            )
        ],
        settings={"teacher": "greedy"},
    )


def render(results: Results, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(build_gap_table(results))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_table_shows_rates_intervals_and_missing_values() -> None:
    text = render(make_results())
    assert "90.0 % of the gap closed in exact match" in text
    line = next(line for line in text.splitlines() if "Student after KD" in line)
    assert "601k" in line
    assert "80.0–inf" in line
    assert "n/a" in next(line for line in text.splitlines() if line.startswith("Teacher"))


def test_no_gap_is_said() -> None:
    assert headline(make_results(reason="the teacher is no better")).endswith("the teacher is no better")
    assert "n/a" in render(make_results(reason="the teacher is no better"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "100.0 %"),
        (0.99996, "99.9 %"),
        (0.0, "0.0 %"),
        (0.0001, "<0.1 %"),
        (-0.5, "-50.0 %"),
        (None, "n/a"),
    ],
)
def test_percent(value: float | None, text: str) -> None:
    assert format_percent(value) == text


def test_counts_and_intervals() -> None:
    assert [format_count(n) for n in (None, 12, 90_880, 1_912_320, 7_000_000_000)] == [
        "n/a",
        "12",
        "90.9k",
        "1.91M",
        "7B",
    ]
    assert format_interval(None) == ""
