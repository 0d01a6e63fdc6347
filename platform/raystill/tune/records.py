"""What a sweep keeps of its trials, as JSON: enough to continue, to compare and to draw. No pickles.

A trial is finished once it has a result.json; one without is trained again, from its newest checkpoint.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from raystill.run.paths import stop_request_in
from raystill.run.publish import make_directory, write_json
from raystill.run.sweep_paths import SweepPaths

Outcome = Literal["complete", "stopped", "failed", "unfinished"]
_TRIAL, _REPORTS, _RESULT = "trial.json", "reports.jsonl", "result.json"


@dataclass(frozen=True)
class Report:
    """The metric at one step; `percent` of the trial's steps were done then, and teachers in memory had been
    asked about `teacher_passes` batches."""

    step: int
    percent: float
    value: float
    teacher_passes: int = 0


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `lineage` lists where it went on from another one's checkpoint, and with what."""

    number: int
    params: dict[str, Any]
    outcome: Outcome = "unfinished"
    reports: tuple[Report, ...] = ()
    seconds: float = 0.0
    train_seconds: float = 0.0
    problem: str = ""
    lineage: tuple[dict[str, Any], ...] = field(default=())

    @property
    def last(self) -> Report | None:
        """The latest report; the trial's score is its value."""
        return self.reports[-1] if self.reports else None


def begin_trial(sweep: SweepPaths, number: int, trial_id: str, params: dict[str, Any]) -> None:
    """Write down a trial before it starts; `trial_id` is the name that Ray Tune has for it this time."""
    path = sweep.trial(number) / _TRIAL
    make_directory(path.parent)
    before = _load(path)
    write_json(
        path,
        {"number": number, "trial_id": trial_id, "params": params, "lineage": before.get("lineage", [])},
    )


def change_params(sweep: SweepPaths, number: int, params: dict[str, Any], *, donor: int, step: int) -> None:
    """Write down that a trial goes on from step `step` of trial `donor`, with other parameters."""
    path = sweep.trial(number) / _TRIAL
    record = _load(path)
    record["lineage"] = [
        *record.get("lineage", []),
        {"from": donor, "step": step, "before": record["params"]},
    ]
    write_json(path, record | {"params": params})


def find_trial(sweep: SweepPaths, trial_id: str) -> int:
    """The number of the trial that Ray Tune calls `trial_id`."""
    for path in sorted(sweep.trials.glob(f"*/{_TRIAL}")):
        record = _load(path)
        if record.get("trial_id") == trial_id:
            return int(record["number"])
    raise LookupError(f"no trial {trial_id} below {sweep.trials}")


def append_report(sweep: SweepPaths, number: int, report: Report) -> None:
    """Add one report; reports of steps that are trained again are dropped when they are read."""
    with (sweep.trial(number) / _REPORTS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(report)) + "\n")


def finish_trial(
    sweep: SweepPaths,
    number: int,
    outcome: Outcome,
    *,
    seconds: float = 0.0,
    train_seconds: float = 0.0,
    problem: str = "",
) -> None:
    """Write a trial's result, unless it has one: what the trial itself said wins."""
    path = sweep.trial(number) / _RESULT
    if not path.exists():
        write_json(
            path,
            {"outcome": outcome, "seconds": seconds, "train_seconds": train_seconds, "problem": problem},
        )


def ask_to_stop(sweep: SweepPaths, number: int) -> None:
    """Have a trial that trains save the step it is at and end; the request goes when it has."""
    write_json(_stop_request(sweep, number), {"reason": "interrupted"})


def is_asked_to_stop(sweep: SweepPaths, number: int) -> bool:
    """Whether a trial was asked to stop and hasn't yet."""
    return _stop_request(sweep, number).exists()


def forget_stop_request(sweep: SweepPaths, number: int) -> None:
    """Take back what `ask_to_stop` asked."""
    _stop_request(sweep, number).unlink(missing_ok=True)


def _stop_request(sweep: SweepPaths, number: int) -> Path:
    return stop_request_in(sweep.trial(number))


def load_trials(sweep: SweepPaths) -> list[TrialRecord]:
    """Every trial that was begun, by number."""
    found = [load_trial(path.parent) for path in sorted(sweep.trials.glob(f"*/{_TRIAL}"))]
    return sorted((record for record in found if record is not None), key=lambda record: record.number)


def load_trial(directory: Path) -> TrialRecord | None:
    """One trial from its directory, or None where it was not begun."""
    record, result = _load(directory / _TRIAL), _load(directory / _RESULT)
    if not record:
        return None
    return TrialRecord(
        number=int(record["number"]),
        params=dict(record["params"]),
        outcome=result.get("outcome", "unfinished"),
        reports=_load_reports(directory / _REPORTS),
        seconds=float(result.get("seconds", 0.0)),
        train_seconds=float(result.get("train_seconds", 0.0)),
        problem=str(result.get("problem", "")),
        lineage=tuple(record.get("lineage", [])),
    )


def best_trial(records: list[TrialRecord], mode: Literal["min", "max"]) -> TrialRecord | None:
    """The best of the trials that went to the end; of all that reported, where none did."""
    for wanted in (("complete",), ("stopped", "unfinished")):
        scored = [
            record
            for record in records
            if record.outcome in wanted and record.last is not None and math.isfinite(record.last.value)
        ]
        if scored:
            return sorted(scored, key=lambda record: _rank(record, mode))[0]
    return None


def rank_key(record: TrialRecord, mode: Literal["min", "max"]) -> tuple[int, float, int]:
    """Orders trials from the best to the worst; those without a report come last."""
    order = {"complete": 0, "stopped": 1, "unfinished": 1, "failed": 2}[record.outcome]
    return (order, *_rank(record, mode))


def _rank(record: TrialRecord, mode: Literal["min", "max"]) -> tuple[float, int]:
    if record.last is None or not math.isfinite(record.last.value):
        return math.inf, record.number
    return (record.last.value if mode == "min" else -record.last.value), record.number


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _load_reports(path: Path) -> tuple[Report, ...]:
    kept: list[Report] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    for line in lines:
        try:
            report = Report(**json.loads(line))
        except (ValueError, TypeError):  # a kill in the middle of a line
            continue
        kept = [earlier for earlier in kept if earlier.step < report.step] + [report]
    return tuple(kept)
