"""Where the time of training goes: shares of the wall time, by part of a step.

On a GPU calls return before their work is done, so time lands on the part that waits for it (mostly the
optimizer, which reads the gradient's norm): the sum is right, the split is the host's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["data", "forward", "backward", "reduce", "optimizer", "save"]
PARTS: tuple[Part, ...] = get_args(Part)


class StepClock:
    """Adds up seconds per part until it is read."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._started = time.perf_counter()

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Count the time inside as `part`'s."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the window."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - started

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds of the window, and each part's share of them; a new window begins."""
        now = time.perf_counter()
        seconds = max(now - self._started, 1e-9)
        shares = {f"time/{part}": spent / seconds for part, spent in self._seconds.items()}
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._started = now
        return seconds, shares
