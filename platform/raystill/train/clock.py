"""Where the time of training goes: shares of the wall time, by part of a step.

Parts may lie within one another (a teacher's forward pass within the step's): time counts once, for the
innermost. On a GPU calls return before their work is done, so time lands on the part that waits for it
(mostly the optimizer, which reads the gradient's norm): the sum is right, the split is the host's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["data", "rollout", "teacher", "forward", "backward", "reduce", "optimizer", "save"]
PARTS: tuple[Part, ...] = get_args(Part)


class StepClock:
    """Adds up seconds per part until it is read. `now` is for tests."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._inner: list[float] = []  # per part that is open: the time that those within it have taken
        self._paused = False
        self._started = now()

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Count the time inside as `part`'s, but for what is measured within it."""
        started = self._now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = self._now() - started
            own = spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent
            if not self._paused:
                self._seconds[part] += own

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the window, whatever is measured there."""
        started, self._paused = self._now(), True
        try:
            yield
        finally:
            self._started += self._now() - started
            self._paused = False

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds of the window, and each part's share of them; a new window begins."""
        now = self._now()
        seconds = max(now - self._started, 1e-9)
        shares = {f"time/{part}": spent / seconds for part, spent in self._seconds.items()}
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._started = now
        return seconds, shares
