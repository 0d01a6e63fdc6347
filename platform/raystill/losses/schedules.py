"""Weights and temperature as functions of the step. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from raystill.losses.terms import EntropyDriven, LossTerms, Value, largest


@dataclass(frozen=True)
class Ramp:
    """A value that goes from `start` to `end` over the first `steps` steps, or the first `fraction` of all.

    linear: in a straight line. cosine: start + (end - start) * (1 - cos(pi x)) / 2, flat at both ends.
    """

    shape: Literal["linear", "cosine"]
    start: float
    end: float
    steps: int | None = None
    fraction: float = 1.0

    def at(self, step: int, total_steps: int) -> float:
        """The value at `step`, counted from 0: `start` there, `end` from the ramp's last step on."""
        length = self.steps if self.steps is not None else round(self.fraction * total_steps)
        x = 1.0 if length <= 1 else min(step / (length - 1), 1.0)
        if self.shape == "cosine":
            x = (1.0 - math.cos(math.pi * x)) / 2.0
        return self.start + (self.end - self.start) * x


Schedule = float | Ramp | EntropyDriven


@dataclass(frozen=True)
class ScheduledTerms:
    """Loss terms whose weights and temperature may change from step to step.

    `terms` holds what doesn't; the three schedules win over its values where they are given. Raises
    ConfigError where every step would train nothing, or a temperature reaches 0.
    """

    terms: LossTerms = field(default_factory=LossTerms)
    ce_weight: Schedule | None = None
    kl_weight: Schedule | None = None
    kd_temperature: Schedule | None = None

    def __post_init__(self) -> None:
        # Each end of every ramp is a state that training passes through.
        for end in ("start", "end"):
            values = {name: _end_of(schedule, end) for name, schedule in self._schedules().items()}
            replace(self.terms, **values)  # type: ignore[arg-type]

    @property
    def uses_teacher(self) -> bool:
        """Whether the divergence has a weight at any step."""
        schedule = self.terms.kl_weight if self.kl_weight is None else self.kl_weight
        if isinstance(schedule, Ramp):
            return max(schedule.start, schedule.end) > 0
        return largest(schedule) > 0

    def at(self, step: int, total_steps: int) -> LossTerms:
        """The terms of `step`, counted from 0, of `total_steps`."""
        values = {name: _value_at(s, step, total_steps) for name, s in self._schedules().items()}
        return replace(self.terms, **values) if values else self.terms  # type: ignore[arg-type]

    def _schedules(self) -> dict[str, Schedule]:
        schedules = {
            "ce_weight": self.ce_weight,
            "kl_weight": self.kl_weight,
            "kd_temperature": self.kd_temperature,
        }
        return {name: schedule for name, schedule in schedules.items() if schedule is not None}


def _value_at(schedule: Schedule, step: int, total_steps: int) -> Value:
    return schedule.at(step, total_steps) if isinstance(schedule, Ramp) else schedule


def _end_of(schedule: Schedule, end: str) -> Value:
    if not isinstance(schedule, Ramp):
        return schedule
    return schedule.start if end == "start" else schedule.end
