"""How far the sweeps of a run are, from what they wrote. Changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from raystill.run.lock import is_locked
from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths


@dataclass(frozen=True)
class SweepStatus:
    """One sweep. `outcomes` counts its trials by what became of them; `unfinished` ones train or wait."""

    name: str
    is_locked: bool
    trials: int
    outcomes: dict[str, int]


def list_sweeps(paths: RunPaths) -> tuple[SweepStatus, ...]:
    """Every sweep that was begun in a run, by name."""
    roots = sorted(record.parent for record in (paths.root / "tune").glob("*/sweep.json"))
    return tuple(_read(SweepPaths(root)) for root in roots)


def _read(sweep: SweepPaths) -> SweepStatus:
    outcomes = Counter(_outcome(path.with_name("result.json")) for path in sweep.trials.glob("*/trial.json"))
    return SweepStatus(sweep.root.name, is_locked(sweep.lock), sum(outcomes.values()), dict(outcomes))


def _outcome(result: Path) -> str:
    try:
        return str(json.loads(result.read_text(encoding="utf-8"))["outcome"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unfinished"
