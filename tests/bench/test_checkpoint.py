"""`bench checkpoint`: what it compares, and our own side on a tiny state."""

from __future__ import annotations

from pathlib import Path

from raystill.bench import checkpoint_kill
from raystill.bench.checkpoint import compare
from raystill.bench.checkpoint_sides import run_ours


def test_rows_judge_waiting_bytes_and_disk() -> None:
    found = {
        "ours": {"blocked_s": 0.01, "written_bytes": 100.0, "peak_bytes": 200.0, "size_bytes": 100.0},
        "HF Trainer": {"blocked_s": 0.2, "written_bytes": 100.0, "peak_bytes": 200.0},
        "Ray SYNC": {"blocked_s": 0.05, "written_bytes": 200.0, "peak_bytes": 300.0},
    }
    rows = {(row.metric, row.peer_name): row for row in compare("1 MB", found)}
    assert rows["step blocked, ms", "HF Trainer"].met and not rows["step blocked, ms", "Ray SYNC"].met
    assert rows["bytes written / size", "Ray SYNC"].peer == 2.0
    assert rows["peak disk / size, one kept", "Ray SYNC"].ours == 2.0
    assert all(row.met for row in rows.values() if row.metric != "step blocked, ms")


def test_our_side_writes_once_and_holds_two_at_most(tmp_path: Path) -> None:
    found = run_ours(1.0, 2, tmp_path)
    assert found["written_bytes"] < 1.05 * found["size_bytes"]
    assert found["peak_bytes"] < 2.05 * found["size_bytes"]
    assert 0 <= found["blocked_s"] < 5


def test_a_row_for_each_of_our_killed_sides() -> None:
    sizes = checkpoint_kill.KillSizes()
    rows = checkpoint_kill.compare(sizes, {"worker": 6.0, "driver": 12.0, "HF Trainer": 8.0})
    assert [(row.ours, row.ratio, row.met) for row in rows] == [(6.0, 0.75, True), (12.0, 1.5, True)]
    assert rows[0].case == "worker, killed 10 steps after a save"
    assert 0 < checkpoint_kill.QUICK.lost < checkpoint_kill.QUICK.save_every - 1


def test_every_kill_comes_as_many_steps_after_a_save() -> None:
    """Also one that overshoots, and never while a save is due: an unfinished one is no resume point."""
    sizes, step, steps = checkpoint_kill.KillSizes(save_every=20, lost=10), 0, []
    for overshoot in (0, 1, 2):
        steps.append(checkpoint_kill.kill_step(step, sizes))
        step = steps[-1] + overshoot + 1
    assert steps == [50, 90, 130]
