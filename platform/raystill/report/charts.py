"""Charts as inline SVG: dot plot with intervals, lines, histogram, bars. Sizes are in CSS pixels.

Horizontal plots give positions in percent of their width, so they fit any screen with text at its own size;
line charts and histograms have a fixed shape and scale as a whole. Every chart has a title and a description
for screen readers, and colours come from CSS classes only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raystill.report.markup import Child, Html, join, tag

_WIDTH, _WIDE, _HEIGHT = 340.0, 460.0, 196.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 10.0, 26.0
_MAX_POINTS = 400


@dataclass(frozen=True)
class Dot:
    """One row of a dot plot, in axis units. `css` is the class that colours it."""

    label: str
    value: float
    low: float | None
    high: float | None
    text: str
    css: str
    stem: bool = False


@dataclass(frozen=True)
class Line:
    """One series of (x, y) points; `marks` draws the points hollow and no line between them."""

    label: str
    points: Sequence[tuple[float, float]]
    css: str
    marks: bool = False


@dataclass(frozen=True)
class Axis:
    """A horizontal axis. `guide` is a value to compare with; dots with a `stem` grow from `origin`."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    guide: float | None = None
    origin: float | None = None

    def percent(self, value: float) -> str:
        """A position in percent of the width, kept inside it."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return f"{min(100.0, max(0.0, 100.0 * share)):.2f}%"


def dot_plot(dots: Sequence[Dot], axis: Axis, *, title: str) -> Html:
    """Horizontal positions with whiskers, one line of text per dot: label, track, value."""
    percent = axis.percent
    rules = [
        tag("line", {"class": "grid", "x1": percent(x), "x2": percent(x), "y1": 0, "y2": "100%"})
        for x, _ in axis.ticks
    ]
    if axis.guide is not None:
        x = percent(axis.guide)
        rules.append(tag("line", {"class": "guide", "x1": x, "x2": x, "y1": 0, "y2": "100%"}))
    rows: list[Child] = []
    for dot in dots:
        track = {"class": "track", "role": "img", "aria-label": f"{dot.label}: {dot.text}", "height": 38}
        rows += [
            tag("div", {"class": "plot-label"}, dot.label),
            tag("svg", track, *rules, *_dot_marks(dot, axis)),
            tag("div", {"class": f"plot-value {dot.css}"}, dot.text),
        ]
    labels = [
        tag("text", {"class": "tick", "x": percent(x), "y": 12, "text-anchor": "middle"}, label)
        for x, label in axis.ticks
    ]
    rows += [
        tag("div", {}),
        tag("svg", {"class": "track axis", "aria-hidden": "true", "height": 18}, *labels),
        tag("div", {}),
    ]
    return tag("div", {"class": "dot-plot", "role": "group", "aria-label": title}, *rows)


def _dot_marks(dot: Dot, axis: Axis) -> list[Html]:
    """Stem, whiskers and dot of one row, 38 pixels high."""
    start, end = (axis.percent(dot.value if bound is None else bound) for bound in (dot.low, dot.high))
    marks = []
    if dot.stem and axis.origin is not None:
        position = {"x1": axis.percent(axis.origin), "x2": axis.percent(dot.value), "y1": 19, "y2": 19}
        marks.append(tag("line", {"class": f"stem {dot.css}", **position}))
    if dot.low is not None or dot.high is not None:
        css = f"whisker {dot.css}"
        marks.append(tag("line", {"class": css, "x1": start, "x2": end, "y1": 19, "y2": 19}))
        marks += [tag("line", {"class": css, "x1": x, "x2": x, "y1": 14, "y2": 24}) for x in (start, end)]
    center = axis.percent(dot.value)
    return [*marks, tag("circle", {"class": f"dot {dot.css}", "cx": center, "cy": 19, "r": 6.5})]


def bar_rows(bars: Sequence[tuple[str, float, str]], *, title: str, css: str = "ink") -> Html:
    """Horizontal bars from (label, value, text), against the largest."""
    largest = max((value for _, value, _ in bars), default=0.0) or 1.0
    rows: list[Child] = []
    for label, value, text in bars:
        width = f"{max(0.3, 100.0 * value / largest):.2f}%" if value > 0 else "0%"
        bar = tag("rect", {"class": f"bar {css}", "x": 0, "y": 5, "width": width, "height": 12, "rx": 2})
        rows += [
            tag("div", {"class": "plot-label"}, label),
            tag(
                "svg", {"class": "track", "role": "img", "aria-label": f"{label}: {text}", "height": 22}, bar
            ),
            tag("div", {"class": "plot-value"}, text),
        ]
    return tag("div", {"class": "bar-rows", "role": "group", "aria-label": title}, *rows)


def line_chart(lines: Sequence[Line], *, title: str, unit: str, log_y: bool = False) -> Html:
    """Curves over optimizer steps, without the points that are not finite, or not positive on a log axis."""
    cleaned = [(line, _thin([p for p in line.points if _drawable(p, log_y)])) for line in lines]
    points = [point for _, kept in cleaned for point in kept]
    if not points:
        return Html("")
    xs = [_snap(x) for x, _ in points]
    heights = [math.log10(y) if log_y else _snap(y) for _, y in points]
    x_low, x_high = min(0.0, min(xs)), max(xs)
    if log_y:
        y_low, y_high = min(heights), max(heights)
        y_ticks = _log_ticks(y_low, y_high)
    else:
        y_low, y_high = _round_range(min(heights), max(heights))
        y_ticks = [(y, format_tick(y)) for y in nice_ticks(y_low, y_high)]
    frame = _Frame(x_low, x_high, y_low, y_high, _WIDTH)
    body: list[Child] = [tag("title", {}, title), tag("desc", {}, _describe(cleaned, unit))]
    body += frame.axes([(x, format_tick(x)) for x in nice_ticks(x_low, x_high)], y_ticks)
    for line, kept in cleaned:
        placed = [(frame.x(_snap(x)), frame.y(math.log10(y) if log_y else _snap(y))) for x, y in kept]
        if line.marks:
            body += [
                tag("circle", {"class": f"mark {line.css}", "cx": x, "cy": y, "r": 3.5}) for x, y in placed
            ]
        elif placed:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
            body.append(tag("path", {"class": f"curve {line.css}", "d": path}))
    return _figure(title, unit, body, _WIDTH)


def histogram(values: Sequence[float], *, title: str, unit: str, css: str = "ink", bins: int = 24) -> Html:
    """How often values fall into equal ranges. `unit` names the horizontal axis."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return Html("")
    low, high, counts = _bin(finite, bins)
    top = _round_range(0.0, float(max(counts)))[1]
    frame = _Frame(low, high, 0.0, top, _WIDE)
    body: list[Child] = [
        tag("title", {}, title),
        tag("desc", {}, f"{len(finite):,} values from {finite[0]:,.4g} to {finite[-1]:,.4g}, "
            f"half of them below {finite[len(finite) // 2]:,.4g}"),
    ]  # fmt: skip
    body += frame.axes(
        [(x, format_tick(x)) for x in nice_ticks(low, high)],
        [(y, format_tick(y)) for y in nice_ticks(0.0, top)],
    )
    width = (frame.x(high) - frame.x(low)) / len(counts)
    for index, count in enumerate(counts):
        if count:
            y = frame.y(float(count))
            body.append(
                tag(
                    "rect",
                    {
                        "class": f"bar {css}",
                        "x": frame.x(low) + index * width + 0.5,
                        "y": y,
                        "width": max(1.0, width - 1.0),
                        "height": max(0.8, frame.y(0.0) - y),
                    },
                )
            )
    return _figure(title, unit, body, _WIDE)


def nice_ticks(low: float, high: float, target: int = 4) -> list[float]:
    """About `target` round values inside [low, high]."""
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        return [low]
    rough = (high - low) / target
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def format_tick(value: float) -> str:
    """A short label: 1.2k, 0.5, 3e-04."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size != 0 and size < 1e-3:
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:.4g}"


@dataclass(frozen=True)
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: float

    def x(self, value: float) -> float:
        span = (self.x_high - self.x_low) or 1.0
        return _LEFT + (value - self.x_low) / span * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        span = (self.y_high - self.y_low) or 1.0
        return _HEIGHT - _BOTTOM - (value - self.y_low) / span * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]) -> list[Html]:
        right, bottom = self.width - _RIGHT, _HEIGHT - _BOTTOM
        drawn = []
        for value, label in y_ticks:
            y = self.y(value)
            drawn.append(tag("line", {"class": "grid", "x1": _LEFT, "x2": right, "y1": y, "y2": y}))
            drawn.append(
                tag("text", {"class": "tick", "x": _LEFT - 6, "y": y + 4, "text-anchor": "end"}, label)
            )
        for value, label in x_ticks:
            x = self.x(value)
            anchor = "end" if x > right - 12 else "middle"
            drawn.append(
                tag("text", {"class": "tick", "x": x, "y": bottom + 18, "text-anchor": anchor}, label)
            )
        drawn.append(
            tag("line", {"class": "axis-line", "x1": _LEFT, "x2": right, "y1": bottom, "y2": bottom})
        )
        return drawn


def _snap(value: float) -> float:
    """Values that no tick could tell from 0 are 0: their ranges underflow."""
    return 0.0 if abs(value) < 1e-9 else value


def _round_range(low: float, high: float) -> tuple[float, float]:
    """A range with round ends that holds [low, high], and zero too unless the values are far from it."""
    low = 0.0 if 0 < low < 0.6 * high else low
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
    if step == 0.0:
        return (low, high) if high > low else (low - 0.5 * abs(low or 1.0), low + 0.5 * abs(low or 1.0))
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _figure(title: str, unit: str, body: Sequence[Child], width: float) -> Html:
    svg = tag("svg", {"viewBox": f"0 0 {width:.0f} {_HEIGHT:.0f}", "role": "img", "class": "chart"}, *body)
    caption = tag("figcaption", {}, tag("strong", {}, title), " ", tag("span", {"class": "unit"}, unit))
    return tag("figure", {}, caption, svg)


def _describe(lines: Sequence[tuple[Line, list[tuple[float, float]]]], unit: str) -> str:
    parts = [
        f"{line.label}: from {kept[0][1]:.4g} to {kept[-1][1]:.4g} over {len(kept)} points"
        for line, kept in lines
        if kept
    ]
    return f"{'; '.join(parts)} ({unit})"


def _drawable(point: tuple[float, float], log_y: bool) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1]) and (point[1] > 0 or not log_y)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MAX_POINTS:
        return points
    stride = math.ceil(len(points) / _MAX_POINTS)
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten in [low, high] (exponents), with 2 and 5 between them where those are few."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [
        (exponent + math.log10(factor), format_tick(factor * 10.0**exponent))
        for exponent in exponents
        for factor in factors
    ]
    inside = [(position, label) for position, label in ticks if low - 0.02 <= position <= high + 0.02]
    return inside or [(low, format_tick(10.0**low))]


def _bin(finite: Sequence[float], bins: int) -> tuple[float, float, list[int]]:
    low, high = finite[0], finite[-1]
    if all(float(value).is_integer() for value in (low, high)) and high - low < 4 * bins:
        width = max(1, math.ceil((high - low + 1) / bins))
        bins = math.ceil((high - low + 1) / width)
        high = low + bins * width
    elif high == low:
        high = low + 1.0
    counts = [0] * bins
    for value in finite:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    return low, high, counts


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Colour keys from (label, css class)."""
    return tag(
        "ul",
        {"class": "legend"},
        *(
            tag("li", {}, tag("span", {"class": f"key {css}", "aria-hidden": "true"}), label)
            for label, css in entries
        ),
    )


def stack(children: Sequence[Child], css: str) -> Html:
    """Children in a block of class `css`; nothing where all are empty."""
    kept = [child for child in children if child]
    return tag("div", {"class": css}, join(kept)) if kept else Html("")
