"""What the page of a sweep is made from, and how the report of its run finds it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths


@dataclass(frozen=True)
class SweepTrial:
    """One trial as the page shows it; `points` are (step, metric)."""

    number: int
    outcome: str
    score: float | None
    params: dict[str, Any]
    points: Sequence[tuple[float, float]]
    seconds: float
    problem: str


@dataclass(frozen=True)
class SweepFacts:
    """What the page is made from. `reproduce` is the command that trains the winner."""

    name: str
    metric: str
    mode: str
    trials: Sequence[SweepTrial]
    best: int | None
    facts: Sequence[tuple[str, str, str]]
    reproduce: str

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SweepFacts:
        """From what `to_json` gave. Raises TypeError and KeyError for anything else."""
        trials = [SweepTrial(**trial) for trial in values["trials"]]
        facts = [(str(value), str(label), str(detail)) for value, label, detail in values["facts"]]
        return cls(**{**values, "trials": trials, "facts": facts})


def load_sweeps(paths: RunPaths) -> list[SweepFacts]:
    """The sweeps of a run that have ended, by name; what can't be read is left out."""
    found = []
    for path in sorted((paths.root / "tune").glob("*/sweep.json")):
        try:
            text = SweepPaths(path.parent).page_facts.read_text(encoding="utf-8")
            found.append(SweepFacts.from_json(json.loads(text)))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return found
