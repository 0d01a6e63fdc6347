"""Disk of a sweep: measured while trials write, freed from the worst, never from the best."""

from __future__ import annotations

import threading
from pathlib import Path

from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths, TrialPaths
from raystill.tune.records import Report, append_report, begin_trial, finish_trial, load_trials
from raystill.tune.retention import tidy_trials, tree_bytes


def test_the_worst_finished_trials_give_way(tmp_path: Path) -> None:
    run = RunPaths(root=tmp_path, store=tmp_path / "store")
    sweep = SweepPaths.of(run, "s")
    paths = {number: TrialPaths.of_trial(run, sweep, number, "distill") for number in range(4)}
    for number, score in enumerate((3.0, 1.0, 2.0, 9.0)):
        begin_trial(sweep, number, f"id{number}", {"a": number})
        append_report(sweep, number, Report(1, 100.0, score))
        for directory in (paths[number].checkpoints("distill"), paths[number].model("distill")):
            directory.mkdir(parents=True)
            (directory / "weights").write_bytes(b"x" * 400_000)
        if number != 3:
            finish_trial(sweep, number, "complete")
    records = load_trials(sweep)
    assert tidy_trials(sweep, records, {3}, paths, "min", None) == []
    assert [paths[number].model("distill").exists() for number in range(4)] == [False, True, False, True]
    # Four sets of checkpoints and two models are 2.4 MB: one has to go, and trial 3 is running.
    assert tidy_trials(sweep, records, {3}, paths, "min", 0.0021) == [0]
    assert tidy_trials(sweep, records, {3}, paths, "min", 0.0001) == [2]
    assert paths[1].checkpoints("distill").exists() and paths[3].checkpoints("distill").exists()


def test_a_folder_that_goes_meanwhile_is_no_error(tmp_path: Path) -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            folder = tmp_path / "a" / ".tmp-x"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "f").write_bytes(b"1")
            (folder / "f").unlink()
            folder.rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert all(tree_bytes(tmp_path) <= 1 for _ in range(300))
    finally:
        stop.set()
        thread.join()
