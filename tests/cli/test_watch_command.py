"""`raystill watch`: what a run logs is shown as it comes, and the end is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from raystill.cli.watch_command import LogTail, RunLogs, since_last_start
from raystill.run.events import EventLog
from raystill.run.lock import hold_lock
from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths


def event(name: str, stage: str = "sft") -> dict[str, Any]:
    return {"event": name, "stage": stage}


def test_only_whole_lines_are_read_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    tail = LogTail(path)
    assert tail.new_records() == []
    path.write_text('{"event": "a"}\n{"event": "b"', encoding="utf-8")
    assert [record["event"] for record in tail.new_records()] == ["a"]
    with path.open("a") as stream:
        stream.write('}\ntorn\n[1]\n{"event": "c"}\n')
    assert [record["event"] for record in tail.new_records()] == ["b", "c"]
    assert tail.new_records() == []


def test_watching_begins_with_the_stage_that_was_begun_last() -> None:
    first, second = event("stage_started"), event("stage_started", "distill")
    assert since_last_start([first, event("progress"), second, event("note")]) == [second, event("note")]
    assert since_last_start([event("note")]) == [event("note")]


def test_the_trials_of_a_sweep_are_seen_as_well(tmp_path: Path) -> None:
    """What it logged before the watching began is no news."""
    paths = RunPaths(root=tmp_path, store=tmp_path / "store")
    sweep = SweepPaths.of(paths, "s")
    with EventLog(sweep.log, "tune") as events:
        events.emit("trial_started", trial=0)
        logs = RunLogs(paths)
        assert logs.new_records() == []
        events.emit("trial_finished", trial=0, outcome="complete")
        with EventLog(SweepPaths.of(paths, "later").log, "tune") as others:
            others.emit("trial_started", trial=7)
        assert sorted(record["trial"] for record in logs.new_records()) == [0, 7]


def test_a_run_is_watched_until_nobody_works_on_it(tmp_path: Path) -> None:
    paths = RunPaths(root=tmp_path, store=tmp_path / "store")
    with EventLog(paths.run_log, "sft") as events:
        events.emit("stage_started", output="x")
        with hold_lock(paths.lock):
            watching = subprocess.Popen(
                [sys.executable, "-P", "-m", "raystill.cli.main", "watch", str(tmp_path)],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert watching.stderr is not None
            assert watching.stderr.readline().strip() == "sft"
            events.emit("progress", done=5, total=10, unit="steps", loss=1.5)
            assert "5/10 steps" in watching.stderr.readline()
            events.emit("stage_finished", seconds=1.0, counts={})
            assert watching.stderr.readline().strip() == "finished"
            assert watching.poll() is None
        assert "no process works on it" in watching.stderr.read()
        assert watching.wait(timeout=60) == 0
