"""Ctrl-C on a closed teacher's run: once it ends in order, twice at once; what was paid for is kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.store.reader import load_rows
from raystill.store.recover import dead_journals, recover_journals
from raystill.store.store import TeacherStore, load_store
from raystill.store.verify import verify_store
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_chat import Latency

pytestmark = pytest.mark.ray
IN_FLIGHT, NUM_PROMPTS = 8, 600
# Answered and not yet durable: a group of the journal.
UNSYNCED = 64
PROBES = 5


def spawn(file: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "raystill.cli.main", "generate", "--config", str(file)],
            env={**os.environ, "NO_COLOR": "1"}, stdout=stream, stderr=stream,
        )  # fmt: skip


def wait_for_answers(api: ScriptedApi, count: int, driver: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180.0
    while api.counts.answered < count:
        assert driver.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def find_workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that ask; Ray puts the actor's class into their titles."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ClientWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def keys_after(store: TeacherStore) -> set[str]:
    """What the next run finds: all that is stored once its first act, the recovery, is done."""
    recover_journals(store)
    assert dead_journals(store) == []
    report = verify_store(store.path)
    assert report.ok and report.num_duplicates == 0
    return {row.key for row in load_rows(store)}


def test_one_interrupt_ends_in_order_and_two_at_once_and_both_keep_what_was_answered(
    tmp_path: Path, save_prompt_table: Callable[..., RunPaths]
) -> None:
    """F4: SIGINT once, then, in the run that goes on from there, twice."""
    log, file = tmp_path / "driver.log", tmp_path / "run.yaml"
    with ScriptedApi(latency=Latency(0.25)) as api:
        config = Config.model_validate(
            {
                "run": {"dir": str(tmp_path / "runs"), "name": "interrupted"},
                "teacher": {
                    "closed": {
                        "model": {"name": "scripted"},
                        "endpoint": {"base_url": api.base_url, "api_key_env": None},
                        "pipeline": {"batch_size": IN_FLIGHT, "max_new_tokens": 40},
                    },
                    "store": {"num_partitions": 2},
                },
            }
        )
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
        paths = save_prompt_table(config, NUM_PROMPTS)
        paths.run_log.parent.mkdir(parents=True)
        paths.run_log.touch()  # the mark of a run's directory
        driver = spawn(file, log)
        wait_for_answers(api, 100, driver, log)
        workers = find_workers(driver)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=120) == 130, log.read_text()[-3000:]
        assert "the same command goes on from there" in log.read_text()
        assert psutil.wait_procs(workers, timeout=120)[1] == []
        store = load_store(paths.store)
        first = keys_after(store)
        answered = api.counts.answered
        assert answered - PROBES - len(first) <= IN_FLIGHT + UNSYNCED
        assert len(first) < NUM_PROMPTS

        driver = spawn(file, log)
        wait_for_answers(api, answered + 60, driver, log)
        workers = find_workers(driver)
        driver.send_signal(signal.SIGINT)
        time.sleep(0.05)  # two signals that meet become one
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=120) != 0, log.read_text()[-3000:]
        assert psutil.wait_procs(workers, timeout=120)[1] == []
        second = keys_after(store)
    assert first <= second
    assert api.counts.answered - 2 * PROBES - len(second) <= 2 * (IN_FLIGHT + UNSYNCED)
