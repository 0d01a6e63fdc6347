"""A closed teacher's run whose driver is a process of its own, as tests of its signals and kills use it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from raystill.config.schema import Config
from raystill.testing.scripted_api import ScriptedApi

IN_FLIGHT = 8
# Answered and not yet durable: a group of the journal.
UNSYNCED = 64
# What a start asks to know the endpoint.
PROBES = 5
_PATIENCE_SECONDS = 300.0


def closed_config(
    directory: Path,
    name: str,
    api: ScriptedApi,
    *,
    api_key_env: str | None = None,
    prices: dict[str, float] | None = None,
    **store: Any,
) -> Config:
    """A run `name` below `directory` whose teacher is `api`; keyword arguments go into `teacher.store`."""
    closed: dict[str, Any] = {
        "model": {"name": "scripted"},
        "endpoint": {"base_url": api.base_url, "api_key_env": api_key_env},
        "pipeline": {"batch_size": IN_FLIGHT, "max_new_tokens": 40},
    }
    if prices is not None:
        closed["prices"] = prices
    return Config.model_validate(
        {
            "run": {"dir": str(directory / "runs"), "name": name},
            "teacher": {"closed": closed, "store": {"num_partitions": 2, **store}},
        }
    )


def spawn(command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a driver; what it prints is added to `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(command, env=os.environ | environment, stdout=stream, stderr=stream)


def wait_for_answers(api: ScriptedApi, count: int, driver: subprocess.Popen[bytes], log: Path) -> None:
    """Until `api` has answered `count` requests; the driver may not end before."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while api.counts.answered < count:
        assert driver.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def find_workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that ask, at least one; Ray puts the actor's class into their titles."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ClientWorker" in " ".join(process.cmdline()):
                found.append(process)
    assert found, "no worker"
    return found
