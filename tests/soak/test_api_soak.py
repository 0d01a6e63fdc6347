"""Random SIGKILLs over driver, worker and proxy of a closed teacher: nothing lost, nothing twice.

RAYSTILL_SOAK_KILLS sets how many (default 3), RAYSTILL_SOAK_SEED which.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from raystill.config.schema import Config
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.paths import RunPaths
from raystill.store.commit import load_commits
from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore, load_store
from raystill.store.verify import verify_store
from raystill.teacher.api.ledger import load_spending
from raystill.testing.scripted_answer import answers_messages
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_batches import BatchScript
from raystill.testing.scripted_chat import Latency
from raystill.testing.server import ServerProcess
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

pytestmark = [pytest.mark.soak, pytest.mark.ray]

KILLS = int(os.environ.get("RAYSTILL_SOAK_KILLS", "3"))
SEED = int(os.environ.get("RAYSTILL_SOAK_SEED", "0"))
DRIVER = Path(__file__).parents[1] / "teacher" / "killed_driver.py"
IN_FLIGHT = 16
ROWS_PER_KILL = 150
# What the journal may not have flushed yet, and what a start asks to know the endpoint.
JOURNAL_ROWS, PROBES = 64, 10
PROMPT_USD, COMPLETION_USD = 1.0, 2.0
START_SECONDS = 240.0

Target = Literal["driver", "worker", "proxy"]


@dataclass
class Soak:
    """One run that is killed again and again. `log` says what was done, for the report of a failure."""

    config: Config
    api: ScriptedApi
    proxy: ServerProcess
    noise: random.Random
    driver: subprocess.Popen[bytes] | None = None
    starts: int = 0
    log: list[str] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the driver, unless it runs."""
        if self.driver is None or self.driver.poll() is not None:
            self.starts += 1
            assert self.starts <= 2 * len(self.log) + 3, f"{self.log}\n{self.errors.read_text()[-3000:]}"
            with self.errors.open("ab") as stream:
                self.driver = subprocess.Popen(
                    [sys.executable, str(DRIVER), self.config.model_dump_json()],
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                )
        return self.driver

    def wait_for_progress(self, progress: int) -> bool:
        """Wait for so many more requests; False where the driver has finished its job before."""
        wanted = self.asked + progress
        deadline = time.monotonic() + START_SECONDS
        while self.asked < wanted and not self.is_finished:
            assert time.monotonic() < deadline, f"no progress after {self.log}"
            if self.driver is not None and self.driver.poll():
                # Its workers died too often, or a kill has ended it: it is resumed.
                self.log.append(f"driver ended with {self.driver.returncode}")
            self.start()
            time.sleep(0.05)
        return not self.is_finished

    @property
    def is_finished(self) -> bool:
        """Whether a driver has done the whole job."""
        return self.driver is not None and self.driver.poll() == 0

    @property
    def errors(self) -> Path:
        """What drivers have printed."""
        return Path(self.config.run.dir) / "drivers.txt"

    @property
    def asked(self) -> int:
        """Requests that have reached the endpoint, rows of batches among them."""
        return self.api.counts.requests + int(self.api.desk.as_json()["batched_rows"])

    def kill(self, target: Target) -> None:
        """SIGKILL; what remains of a killed driver's Ray is waited for, a proxy comes back."""
        self.log.append(target)
        if target == "proxy":
            self.proxy.kill()
            time.sleep(self.noise.uniform(0.0, 0.5))
            self.proxy.start()
            return
        assert self.driver is not None
        children = psutil.Process(self.driver.pid).children(recursive=True)
        workers = [process for process in children if _is_worker(process)]
        if target == "worker":
            for process in workers:
                process.kill()
            return
        self.driver.kill()
        self.driver.wait()
        assert psutil.wait_procs(workers, timeout=120)[1] == []

    def finish(self) -> TeacherStore:
        """Let the run end by itself."""
        deadline = time.monotonic() + START_SECONDS + 0.2 * KILLS * ROWS_PER_KILL
        while not self.is_finished:
            self.start()
            assert time.monotonic() < deadline, f"not finished after {self.log}"
            time.sleep(0.1)
        return load_store(RunPaths.from_config(self.config).store)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "ClientWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _config(directory: Path, base_url: str, mode: str) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(directory / "runs"), "name": "soak"},
            "teacher": {
                "closed": {
                    "model": {"name": "scripted"},
                    "pipeline": {"max_new_tokens": 64, "batch_size": IN_FLIGHT},
                    "endpoint": {
                        "base_url": base_url,
                        "api_key_env": None,
                        "request_timeout_s": 10.0,
                        "max_attempts": 30,
                        "mode": mode,
                    },
                    "prices": {"prompt": PROMPT_USD, "completion": COMPLETION_USD},
                    "budget": {"ask_above_usd": 100.0},
                },
                "signals": {"num_logprobs": 0},
                "store": {"num_partitions": 4, "rows_per_part": 64},
            },
        }
    )


def _proxy(api: ScriptedApi, fault: str) -> ServerProcess:
    return ServerProcess("raystill.testing.fault_proxy", ["--upstream", api.url, "--fault", fault])


def _save_prompts(config: Config, number: int) -> None:
    paths = RunPaths.from_config(config)
    prompts = [
        Prompt(
            f"p{index:06d}",
            "soak",
            "train",
            [{"role": "user", "content": f"question {index}"}],
            "text",
            None,
            4,
        )
        for index in range(number)
    ]
    save_prompts(paths.prompt_table, prompts)
    manifest = Manifest(stage="prepare", fingerprint=f"soak-{number}", config={}, inputs={})
    save_manifest(paths.stage_dir("prepare"), manifest)


def _assert_each_row_once(store: TeacherStore, number: int, factor: float, notes: str) -> None:
    columns = ("key", "prompt_id", "messages", "completion", "usage", "cost_usd")
    rows: list[dict[str, Any]] = [
        row for table in iter_tables(store, columns=columns) for row in table.to_pylist()
    ]
    assert {row["prompt_id"] for row in rows} == {f"p{index:06d}" for index in range(number)}, notes
    parts = range(store.num_partitions)
    written = sum(commit.num_rows for part in parts for commit in load_commits(store, part, "rows"))
    assert written == len(rows) == number, notes
    assert all(answers_messages(json.loads(row["messages"]), row["completion"]) for row in rows)
    assert list(iter_tables(store, kind="rejects", columns=("key",))) == [], notes
    usages = [json.loads(row["usage"]) for row in rows]
    cost = sum(
        usage["prompt_tokens"] * PROMPT_USD + usage["completion_tokens"] * COMPLETION_USD for usage in usages
    )
    cost *= factor / 1e6
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(cost)
    assert load_spending(store).rows_usd == pytest.approx(cost)
    assert verify_store(store.path).ok


def test_random_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    noise = random.Random(SEED)
    with ScriptedApi(latency=Latency(0.12, 0.5, 0.05, 0.5)) as api, _proxy(api, "429=0.2:0.02") as proxy:
        config = _config(tmp_path, f"{proxy.url}/v1", "online")
        number = ROWS_PER_KILL * KILLS + 200
        _save_prompts(config, number)
        soak = Soak(config, api, proxy, noise)
        targets: list[Target] = ["driver", "worker", "proxy"]
        allowed = 0
        for index in range(KILLS):
            if not soak.wait_for_progress(noise.randint(20, 100)):
                break
            time.sleep(noise.uniform(0.0, 0.3))
            allowed += api.counts.in_flight + JOURNAL_ROWS
            soak.kill(targets[index] if index < len(targets) else noise.choice(targets))
        store = soak.finish()
        notes = f"seed {SEED}, {soak.log}"
        _assert_each_row_once(store, number, 1.0, notes)
        asked_again = api.counts.requests - len(api.counts.by_body)
        assert asked_again <= allowed + PROBES * soak.starts, notes
        billed = api.counts.prompt_tokens * PROMPT_USD + api.counts.completion_tokens * COMPLETION_USD
        spending = load_spending(store)
        assert spending.spent_usd <= billed / 1e6 * (1.0 + 1e-9), notes


def test_kills_while_batches_run_ask_for_nothing_twice(tmp_path: Path) -> None:
    noise = random.Random(SEED)
    number = 40 * KILLS + 40
    script = BatchScript(rows_per_second=8.0, duplicates=0.1)
    with ScriptedApi(batches=script) as api, _proxy(api, "latency=0.1:0.1") as proxy:
        config = _config(tmp_path, f"{proxy.url}/v1", "batch")
        _save_prompts(config, number)
        soak = Soak(config, api, proxy, noise)
        for index in range(KILLS):
            if not soak.wait_for_progress(noise.randint(2, 10)):
                break
            soak.kill("driver" if index % 2 == 0 else "proxy")
        store = soak.finish()
        _assert_each_row_once(store, number, 0.5, f"seed {SEED}, {soak.log}")
        assert api.desk.as_json()["batched_rows"] == number
