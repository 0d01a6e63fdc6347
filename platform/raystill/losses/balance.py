"""Bringing terms to one magnitude before they are weighted."""

from __future__ import annotations

from dataclasses import dataclass

_KEPT = 0.98
# A term that has vanished, or outgrown the other this far, isn't chased any further.
_LARGEST = 1e3


@dataclass
class TermBalance:
    """Running magnitudes of the raw terms, in nats per token, over about the last 50 steps.

    They come from whole steps over all workers, so how a step is cut changes nothing, and are plain numbers,
    so that a checkpoint can hold them.
    """

    ce: float = 0.0
    kd: float = 0.0
    steps: int = 0

    def update(self, ce: float, kd: float) -> None:
        """Take in one step's mean raw terms; the first steps are averaged evenly."""
        self.steps += 1
        kept = min(_KEPT, 1.0 - 1.0 / self.steps)
        self.ce = kept * self.ce + (1.0 - kept) * abs(ce)
        self.kd = kept * self.kd + (1.0 - kept) * abs(kd)

    @property
    def kd_factor(self) -> float:
        """What brings the KD term to the cross entropy's magnitude; 1 as long as nothing is known."""
        if self.steps == 0 or self.kd == 0.0 or self.ce == 0.0:
            return 1.0
        return min(max(self.ce / self.kd, 1.0 / _LARGEST), _LARGEST)
