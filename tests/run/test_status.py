"""How far a run is, read from its files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raystill.errors import DataError
from raystill.run.events import EventLog
from raystill.run.lock import hold_lock
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.paths import RunPaths
from raystill.run.status import StageStatus, read_status


def begin(paths: RunPaths, *, error: BaseException | None = None) -> None:
    """Prepare is complete; generate has 30 of 100 rows, 10 of them from an earlier run."""
    counts = {"kept": 100, "rows_in": 104, "rejected": 4}
    manifest = Manifest(
        stage="prepare", fingerprint="x", config={}, inputs={}, counts=counts, metrics={}, seconds=2.0
    )
    save_manifest(paths.stage_dir("prepare"), manifest)
    try:
        with EventLog(paths.run_log, "generate") as events:
            events.emit("stage_started")
            events.emit("requests_planned", requests=100, reused=10, shards=9)
            events.emit(
                "progress", done=22, total=90, rejected=2, tokens_per_s=50.0, eta_seconds=7.0, cost_usd=0.25
            )
            if error is not None:
                raise error
    except (DataError, KeyboardInterrupt):
        pass


def stage(paths: RunPaths, name: str) -> StageStatus:
    return next(found for found in read_status(paths).stages if found.name == name)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(root=tmp_path, store=tmp_path / "teacher_store")


def test_a_run_in_progress(paths: RunPaths) -> None:
    begin(paths)
    with hold_lock(paths.lock):
        found = stage(paths, "generate")
    assert (found.condition, found.done, found.left, found.rejected) == ("running", 30, 68, 2)
    assert (found.rows_saved, found.cost_usd, found.rate, found.eta_seconds) == (10, 0.25, 50.0, 7.0)
    prepare = stage(paths, "prepare")
    assert (prepare.condition, prepare.done, prepare.left, prepare.rejected) == ("complete", 100, 0, 4)
    assert stage(paths, "distill").condition == "absent"


def test_a_stage_in_training_has_the_time_that_its_steps_say(paths: RunPaths) -> None:
    lines = [{"event": "stage_started", "time": 0.0}]
    lines += [
        {"event": "progress", "time": now, "done": done, "total": 140, "unit": "steps"}
        for now, done in ((60.0, 10), (65.0, 15), (70.0, 20))
    ]
    paths.run_log.parent.mkdir(parents=True)
    paths.run_log.write_text("".join(json.dumps({"stage": "sft"} | line) + "\n" for line in lines))
    with hold_lock(paths.lock):
        assert stage(paths, "sft").eta_seconds == 120.0


def test_an_end_without_a_word_and_an_end_with_one(paths: RunPaths) -> None:
    begin(paths)
    assert stage(paths, "generate").condition == "interrupted"
    assert stage(paths, "generate").eta_seconds is None
    assert not read_status(paths).is_locked
    begin(paths, error=DataError("no"))
    assert stage(paths, "generate").condition == "failed"
    begin(paths, error=KeyboardInterrupt())  # Ctrl-C, or a job that was stopped
    assert stage(paths, "generate").condition == "interrupted"


def test_a_torn_line_is_no_event(paths: RunPaths) -> None:
    begin(paths)
    with paths.run_log.open("a") as stream:
        stream.write('{"event": "progress", "stage": "generate", "do')
    assert stage(paths, "generate").done == 30


def test_nothing_there_is_an_error_and_nothing_is_made(paths: RunPaths) -> None:
    with pytest.raises(DataError, match="no run here"):
        read_status(paths)
    assert list(paths.root.iterdir()) == []


def test_it_needs_neither_torch_nor_ray(paths: RunPaths) -> None:
    begin(paths)
    paths.resolved_config.write_text(
        "teacher: {engine: fake, open: {model: {name: t}}}\ntrain: {sft: {}}\n"
        "student: {hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}\n",
        encoding="utf-8",
    )
    code = (
        "import sys; from raystill.cli.main import main; "
        f"code = main(['status', {str(paths.root)!r}]); "
        "assert not {'torch', 'ray', 'vllm', 'pyarrow'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
    assert "68" in done.stdout
    assert (
        "not begun: score, sft, evaluate, export\n" in done.stdout
    )  # and no judge, which this run doesn't have
    assert "$0.2500" in done.stdout
