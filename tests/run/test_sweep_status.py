"""How far sweeps are, from their files alone."""

from __future__ import annotations

from pathlib import Path

from raystill.run.lock import hold_lock
from raystill.run.paths import RunPaths
from raystill.run.publish import write_json
from raystill.run.sweep_paths import SweepPaths
from raystill.run.sweep_status import list_sweeps


def test_trials_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    paths = RunPaths(root=tmp_path, store=tmp_path / "store")
    assert list_sweeps(paths) == ()
    for name, outcomes in (("b", ["complete", "stopped", "complete", None]), ("a", [])):
        sweep = SweepPaths.of(paths, name)
        sweep.trials.mkdir(parents=True)
        write_json(sweep.record, {})
        for number, outcome in enumerate(outcomes):
            sweep.trial(number).mkdir()
            write_json(sweep.trial(number) / "trial.json", {"number": number})
            if outcome is not None:
                write_json(sweep.trial(number) / "result.json", {"outcome": outcome})
    with hold_lock(SweepPaths.of(paths, "b").lock):
        empty, busy = list_sweeps(paths)
    assert (empty.name, empty.trials, empty.is_locked) == ("a", 0, False)
    assert (busy.name, busy.trials, busy.is_locked) == ("b", 4, True)
    assert busy.outcomes == {"complete": 2, "stopped": 1, "unfinished": 1}
