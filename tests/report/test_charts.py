"""Charts put values where they belong, survive odd input, and describe themselves."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.report.charts import (
    Axis,
    Dot,
    Line,
    bar_rows,
    dot_plot,
    format_tick,
    histogram,
    line_chart,
    nice_ticks,
)

FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1e-6) | st.integers(-5, 5).map(float)


def numbers(markup: str) -> list[float]:
    """Every coordinate in the drawing."""
    drawn = re.findall(r'\b(?:x|y|x1|x2|y1|y2|cx|cy|width|height)="(-?[\d.e+-]+)%?"', markup)
    paths = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", markup)
    return [float(text) for text in drawn] + [float(text) for pair in paths for text in pair]


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-9, 1e9))
def test_ticks_are_inside_round_and_few(low: float, span: float) -> None:
    high = low + span
    ticks = nice_ticks(low, high)
    tolerance = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - tolerance <= tick <= high + tolerance for tick in ticks)
    assert len(ticks) <= 6
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 25, 50, 75, 100]),
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 900, [0, 250, 500, 750]),
        (3, 3, [3]),
    ],
)
def test_familiar_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (15_000, "15k"),
        (2_500_000, "2.5M"),
        (3e-4, "0.0003"),
        (2e-5, "2e-5"),
        (-4, "-4"),
    ],
)
def test_tick_labels(value: float, text: str) -> None:
    assert format_tick(value) == text


@given(points=st.lists(st.tuples(FLOATS, FLOATS), max_size=30), log_y=st.booleans())
def test_lines_of_any_numbers_draw_finite_coordinates(points: list[tuple[float, float]], log_y: bool) -> None:
    points = [(x, y) for x, y in points if not (math.isfinite(x) and abs(x) > 1e12)]
    points = [(x, y) for x, y in points if not (math.isfinite(y) and abs(y) > 1e12)]
    chart = line_chart([Line("a", points, "sft")], title="t", unit="u", log_y=log_y)
    if chart:
        ElementTree.fromstring(chart)
        assert all(-1 <= value <= 500 for value in numbers(chart))


def test_a_falling_curve_falls() -> None:
    chart = line_chart([Line("a", [(0, 10.0), (50, 4.0), (100, 1.0)], "sft")], title="Loss", unit="nats")
    ys = [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", chart)]
    assert ys == sorted(ys)
    assert "from 10 to 1 over 3 points" in chart
    assert "<title>Loss</title>" in chart


def test_long_curves_are_thinned_but_keep_their_end() -> None:
    points = [(float(step), float(step)) for step in range(5001)]
    chart = line_chart([Line("a", points, "sft")], title="t", unit="u")
    assert len(re.findall(r"[ML][\d.]+ ", chart)) <= 402
    assert "from 0 to 5000" in chart


def test_empty_charts_are_nothing() -> None:
    assert line_chart([Line("a", [(1.0, math.nan)], "sft")], title="t", unit="u") == ""
    assert histogram([], title="t", unit="u") == ""


@given(values=st.lists(st.integers(0, 4000) | st.floats(0, 1), min_size=1, max_size=60))
def test_histograms_count_every_value(values: list[float]) -> None:
    chart = histogram(values, title="t", unit="u")
    ElementTree.fromstring(chart)
    assert f"{len(values):,} values" in chart
    assert all(-1 <= value <= 500 for value in numbers(chart))


def test_dots_stand_at_their_percentage_and_intervals_may_be_open() -> None:
    axis = Axis(0, 100, [(0, "0 %"), (100, "100 %")], guide=96, origin=0)
    plot = dot_plot([Dot("KD", 93.3, 89.9, None, "93.3 %", "distill", stem=True)], axis, title="t")
    assert 'cx="93.30%"' in plot
    assert 'x1="89.90%"' in plot
    assert 'aria-label="KD: 93.3 %"' in plot
    assert 'x1="96.00%"' in plot


def test_dots_outside_the_axis_stay_on_it() -> None:
    plot = dot_plot([Dot("a", 140.0, -20.0, 300.0, "x", "sft")], Axis(0, 100, []), title="t")
    assert all(0 <= value <= 100 for value in numbers(plot))


def test_bars_are_relative_to_the_largest() -> None:
    bars = bar_rows([("a", 10.0, "10"), ("b", 5.0, "5"), ("c", 0.0, "0")], title="t")
    assert re.findall(r'width="([\d.]+)%"', bars) == ["100.00", "50.00", "0"]
    assert bar_rows([], title="t")
