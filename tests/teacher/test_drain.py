"""F4: a job that is told to end commits what is finished first; here with its store on object storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.store.reader import committed_keys, load_rows
from raystill.store.store import load_store
from raystill.store.verify import verify_store
from raystill.teacher import drain as drain_module
from raystill.teacher.drain import Drain, drained_on_signals
from raystill.teacher.fake_engine import SECONDS_PER_ROW_VARIABLE
from raystill.testing.object_storage import object_storage

NUM_PROMPTS = 300
# The driver of killed_driver.py, on a machine that may be busier than a job's last seconds allow for.
PATIENT_DRIVER = f"""
import runpy
from raystill.teacher import drain
drain._SECONDS = 300.0
runpy.run_path({str(Path(__file__).with_name("killed_driver.py"))!r}, run_name="__main__")
"""


def spawn_driver(config: Config, seconds_per_row: str) -> subprocess.Popen[bytes]:
    said = Path(config.run.dir) / "driver.log"
    with said.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", PATIENT_DRIVER, config.model_dump_json()],
            env={**os.environ, SECONDS_PER_ROW_VARIABLE: seconds_per_row},
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )


def wait_for_finished(paths: RunPaths, number: int, driver: subprocess.Popen[bytes]) -> int:
    """Wait until the driver has been told of `number` rows; returns of how many."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert driver.poll() is None, (paths.root.parent / "driver.log").read_text()[-4000:]
        lines = paths.run_log.read_text().splitlines() if paths.run_log.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("}")]
        done = max((event["done"] for event in events if event.get("event") == "progress"), default=0)
        if done >= number:
            return int(done)
        time.sleep(0.1)
    raise AssertionError("no rows in five minutes")


def all_keys(store_path: Path) -> list[str]:
    store = load_store(store_path)
    return [key for part in range(store.num_partitions) for key in committed_keys(store, part)]


def test_a_terminated_driver_has_what_was_finished_and_the_next_asks_for_the_rest(
    make_config: Callable[..., Config], save_prompt_table: Callable[..., RunPaths]
) -> None:
    """F4: SIGTERM, with the store on object storage."""
    with object_storage() as bucket:
        store = {"path": f"{bucket}/drained", "num_partitions": 2, "rows_per_part": 128}
        config = make_config(pipeline={"batch_size": 3}, store=store)
        paths = save_prompt_table(config, NUM_PROMPTS)
        driver = spawn_driver(config, "0.7")
        reported = wait_for_finished(paths, 4, driver)
        assert all_keys(paths.store) == []  # no shard of 128 rows is complete
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(timeout=300) != 0
        drained = all_keys(paths.store)
        assert reported <= len(drained) == len(set(drained)) < NUM_PROMPTS

        assert spawn_driver(config, "0").wait(timeout=300) == 0
        rows = load_rows(load_store(paths.store), with_signal=True)
        assert {row.prompt_id for row in rows} == {f"p{number:05d}" for number in range(NUM_PROMPTS)}
        manifest = json.loads((paths.stage_dir("generate") / "manifest.json").read_text())
        assert manifest["counts"]["done"] == NUM_PROMPTS
        assert manifest["counts"]["reused"] == len(drained)
        report = verify_store(paths.store)
        assert report.ok and report.num_duplicates == 0


def test_the_driver_waits_for_the_workers_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain, committed = Drain(tmp_path / "drain"), threading.Event()

    def commit() -> None:
        time.sleep(0.2)
        committed.set()

    drain.join("worker", commit)
    assert not drain.is_asked
    drain.ask()
    assert committed.is_set()
    monkeypatch.setattr(drain_module, "_SECONDS", 0.3)
    Drain(tmp_path / "other").join("hanging", threading.Event().wait)  # type: ignore[arg-type]
    Drain(tmp_path / "other").ask()


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F4."""
    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append("before"))

    class Slow(Drain):
        def ask(self) -> None:
            seen.append("asked")
            os.kill(os.getpid(), signal.SIGTERM)  # does what it did before, without another drain

    try:
        with pytest.raises(KeyboardInterrupt), drained_on_signals(Slow(tmp_path)):
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == ["asked", "before", "before"]
    finally:
        signal.signal(signal.SIGTERM, before)
