"""Parallel coordinates as inline SVG: one vertical axis per key, one line per trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raystill.report.charts import format_tick
from raystill.report.markup import Child, Html, tag

_HEIGHT, _TOP, _BOTTOM, _SIDE = 300.0, 40.0, 12.0, 70.0
_BETWEEN = 150.0
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Path:
    """One line: a value for every axis. `css` is the class that colours it; later lines lie on top."""

    label: str
    values: Sequence[Any]
    css: str


def parallel_coordinates(names: Sequence[str], paths: Sequence[Path], *, title: str) -> Html:
    """Axes in the given order; numbers that span two magnitudes get a logarithmic one, words one by one."""
    width = 2 * _SIDE + _BETWEEN * max(1, len(names) - 1)
    scales = [_Scale([path.values[index] for path in paths]) for index in range(len(names))]
    body: list[Child] = [
        tag("title", {}, title),
        tag("desc", {}, f"{len(paths)} lines over the axes {', '.join(names)}"),
    ]
    for index, name in enumerate(names):
        x = _SIDE + index * _BETWEEN
        body.append(
            tag("line", {"class": "axis-line", "x1": x, "x2": x, "y1": _TOP, "y2": _HEIGHT - _BOTTOM})
        )
        head = {"class": "tick", "x": x, "y": 16 if index % 2 else 28, "text-anchor": "middle"}
        body.append(tag("text", head, _short(shorten(name, names))))
    for path in paths:
        points = [
            f"{_SIDE + index * _BETWEEN:.1f} {_y(height):.1f}"
            for index, value in enumerate(path.values)
            if (height := scales[index].share(value)) is not None
        ]
        course = {"class": f"curve {path.css}", "d": "M" + "L".join(points)}
        body.append(tag("path", course, tag("title", {}, path.label)))
    for index, scale in enumerate(scales):  # above the lines, which would strike them out
        for label, share in scale.ticks():
            x = _SIDE + index * _BETWEEN - 6
            place = {"class": "tick over", "x": x, "y": _y(share) + 4, "text-anchor": "end"}
            body.append(tag("text", place, label))
    size = {"viewBox": f"0 0 {width:.0f} {_HEIGHT:.0f}", "role": "img", "class": "chart"}
    return tag("figure", {}, tag("svg", size, *body))


def shorten(path: str, among: Sequence[str]) -> str:
    """The shortest end of a dotted key that no other key of the space has."""
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith(f".{end}") for other in among) == 1:
            return end
    return path


class _Scale:
    """Where the values of one axis lie, from 0 at the bottom to 1 at the top."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._is_number = all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            for value in values
        )
        self._words = sorted({str(value) for value in values})
        numbers = [float(value) for value in values] if self._is_number else []
        self._low, self._high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
        self._is_log = self._low > 0 and self._high / self._low >= 100

    def share(self, value: Any) -> float | None:
        """The height of a value; None where it has none."""
        if not self._is_number:
            return self._words.index(str(value)) / max(1, len(self._words) - 1)
        low, high, number = self._low, self._high, float(value)
        if self._is_log:
            low, high, number = math.log(low), math.log(high), math.log(number)
        return (number - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[str, float]]:
        """Labels with their heights."""
        if not self._is_number:
            return [(_short(word), self.share(word) or 0.0) for word in self._words]
        if self._low == self._high:
            return [(format_tick(self._low), 0.5)]
        return [(format_tick(self._low), 0.0), (format_tick(self._high), 1.0)]


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _short(text: str) -> str:
    """The end of a long name: the last parts of a dotted key say what it is."""
    if len(text) <= _LONGEST_NAME:
        return text
    return "…" + text[-_LONGEST_NAME + 1 :]
