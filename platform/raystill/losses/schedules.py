"""Weights and temperature as functions of the step. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from raystill.losses.terms import EntropyDriven, LossTerms, Value


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
        self._at_ends()

    @property
    def ends(self) -> tuple[LossTerms, LossTerms]:
        """The terms that every ramp starts in, and those that it ends in: all others lie between."""
        return self._at_ends()

    @property
    def uses_teacher(self) -> bool:
        """Whether the divergence has a weight at any step."""
        return any(terms.uses_teacher for terms in self.ends)

    @property
    def last(self) -> LossTerms:
        """The terms that every ramp ends in: what held-out rows are measured with, at every step alike."""
        return self.ends[1]

    def describe(self) -> dict[str, str | float]:
        """Weights, temperature and divergence, for people; a schedule as text."""
        described: dict[str, str | float] = {}
        for name in ("ce_weight", "kl_weight", "kd_temperature"):
            value = self._schedules().get(name, getattr(self.terms, name))
            described[name] = value if isinstance(value, int | float) else str(value)
        return {**described, "divergence": self.terms.divergence}

    def at(self, step: int, total_steps: int) -> LossTerms:
        """The terms of `step`, counted from 0, of `total_steps`."""
        values = {name: _value_at(s, step, total_steps) for name, s in self._schedules().items()}
        return replace(self.terms, **values) if values else self.terms  # type: ignore[arg-type]

    def _at_ends(self) -> tuple[LossTerms, LossTerms]:
        first, last = (
            {name: _end_of(schedule, end) for name, schedule in self._schedules().items()}
            for end in ("start", "end")
        )
        return replace(self.terms, **first), replace(self.terms, **last)  # type: ignore[arg-type]

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
