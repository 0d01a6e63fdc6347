"""Ctrl-C on a closed teacher's run: once it ends in order, twice at once; what was paid for is kept."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from closed_driver import IN_FLIGHT, PROBES, UNSYNCED, closed_config, find_workers, spawn, wait_for_answers

from raystill.run.paths import RunPaths
from raystill.store.reader import load_rows
from raystill.store.recover import dead_journals, recover_journals
from raystill.store.store import TeacherStore, load_store
from raystill.store.verify import verify_store
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_chat import Latency

pytestmark = pytest.mark.ray
NUM_PROMPTS = 600


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
    command = [sys.executable, "-P", "-m", "raystill.cli.main", "generate", "--config", str(file)]
    with ScriptedApi(latency=Latency(0.25)) as api:
        config = closed_config(tmp_path, "interrupted", api)
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
        paths = save_prompt_table(config, NUM_PROMPTS)
        paths.run_log.parent.mkdir(parents=True)
        paths.run_log.touch()  # the mark of a run's directory
        driver = spawn(command, log, NO_COLOR="1")
        wait_for_answers(api, 100, driver, log)
        workers = find_workers(driver)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=300) == 130, log.read_text()[-3000:]
        assert "the same command goes on from there" in log.read_text()
        assert psutil.wait_procs(workers, timeout=300)[1] == []
        store = load_store(paths.store)
        first = keys_after(store)
        answered = api.counts.answered
        assert answered - PROBES - len(first) <= IN_FLIGHT + UNSYNCED
        assert len(first) < NUM_PROMPTS

        driver = spawn(command, log, NO_COLOR="1")
        wait_for_answers(api, answered + 60, driver, log)
        workers = find_workers(driver)
        driver.send_signal(signal.SIGINT)
        time.sleep(0.05)  # two signals that meet become one
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=300) != 0, log.read_text()[-3000:]
        assert psutil.wait_procs(workers, timeout=300)[1] == []
        second = keys_after(store)
    assert first <= second
    assert api.counts.answered - 2 * PROBES - len(second) <= 2 * (IN_FLIGHT + UNSYNCED)
