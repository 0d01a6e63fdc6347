"""Random SIGKILLs over driver, worker and proxy of a closed teacher: nothing lost, nothing twice.

`killed_run` says how many, and how a failure is replayed. A fifth of the kills hits a run in batch mode,
a tenth, but at least three, one whose store is on S3.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from killed_run import KILLS, KilledRun, end, save_questions

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.run.remote import is_remote
from raystill.store.commit import load_commits
from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore
from raystill.store.verify import verify_store
from raystill.teacher.api.ledger import load_spending
from raystill.testing.object_storage import object_storage
from raystill.testing.scripted_answer import answers_messages
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_batches import BatchScript
from raystill.testing.scripted_chat import Latency
from raystill.testing.server import ServerProcess

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.timeout(3600)]

BATCH_KILLS, REMOTE_KILLS = max(1, KILLS // 5), max(3, KILLS // 10)
ONLINE_KILLS = max(3, KILLS - BATCH_KILLS - REMOTE_KILLS)
IN_FLIGHT = 16
# Most of what is asked for happens while a kill is waited for and after it: these never run out before.
ROWS_PER_KILL, BATCH_ROWS_PER_KILL = 150, 100
# What the journal may not have flushed yet, and what a start asks to know the endpoint.
JOURNAL_ROWS, REMOTE_JOURNAL_ROWS, PROBES = 64, 256, 10
PROMPT_USD, COMPLETION_USD = 1.0, 2.0


def _config(directory: Path, base_url: str, mode: str, **store: Any) -> Config:
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
                "store": {"num_partitions": 4, "rows_per_part": 64, **store},
            },
        }
    )


@contextmanager
def _killed_run(config: Config, api: ScriptedApi, proxy: ServerProcess) -> Iterator[KilledRun]:
    """A run whose endpoint is behind `proxy`, which can be killed as well."""

    def kill_proxy(run: KilledRun) -> None:
        proxy.kill()
        time.sleep(run.noise.uniform(0.0, 0.5))
        proxy.start()

    def asked() -> int:
        return api.counts.requests + int(api.desk.as_json()["batched_rows"])

    run = KilledRun(config, asked, "ClientWorker", {"proxy": kill_proxy})
    try:
        yield run
    finally:
        end(run)


def _proxy(api: ScriptedApi, fault: str) -> ServerProcess:
    return ServerProcess("raystill.testing.fault_proxy", ["--upstream", api.url, "--fault", fault])


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


def _soak_online(config: Config, api: ScriptedApi, proxy: ServerProcess, kills: int, what: str) -> None:
    journal_rows = REMOTE_JOURNAL_ROWS if is_remote(RunPaths.from_config(config).store) else JOURNAL_ROWS
    number = ROWS_PER_KILL * kills + 200
    save_questions(config, number)
    allowed = 0

    def allow(victim: str) -> None:
        nonlocal allowed
        # A proxy takes nothing with it that the worker has in its hands.
        allowed += api.counts.in_flight + (0 if victim == "proxy" else journal_rows)

    with _killed_run(config, api, proxy) as run:
        run.soak({"driver": 0.2, "worker": 0.4, "proxy": 0.4}, (20, 100), kills, before_kill=allow)
        store = run.finish(what)
        _assert_each_row_once(store, number, 1.0, run.notes)
        asked_again = api.counts.requests - len(api.counts.by_body)
        assert asked_again <= allowed + PROBES * run.starts, run.notes
        billed = api.counts.prompt_tokens * PROMPT_USD + api.counts.completion_tokens * COMPLETION_USD
        assert load_spending(store).spent_usd <= billed / 1e6 * (1.0 + 1e-9), run.notes


def test_random_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """F1, F2."""
    with ScriptedApi(latency=Latency(0.12, 0.5, 0.05, 0.5)) as api, _proxy(api, "429=0.2:0.02") as proxy:
        config = _config(tmp_path, f"{proxy.url}/v1", "online")
        _soak_online(config, api, proxy, ONLINE_KILLS, "closed teacher")


def test_kills_while_answers_go_to_object_storage_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """F1, F2."""
    latency = Latency(0.12, 0.5, 0.05, 0.5)
    with (
        object_storage() as bucket,
        ScriptedApi(latency=latency) as api,
        _proxy(api, "429=0.2:0.02") as proxy,
    ):
        config = _config(tmp_path, f"{proxy.url}/v1", "online", path=f"{bucket}/soak")
        _soak_online(config, api, proxy, REMOTE_KILLS, "closed teacher, store on S3")


def test_kills_while_batches_run_ask_for_nothing_twice(tmp_path: Path) -> None:
    """F1."""
    number = BATCH_ROWS_PER_KILL * BATCH_KILLS + 40
    script = BatchScript(rows_per_second=1.0, duplicates=0.1)
    with ScriptedApi(batches=script) as api, _proxy(api, "latency=0.1:0.1") as proxy:
        config = _config(tmp_path, f"{proxy.url}/v1", "batch")
        save_questions(config, number)
        with _killed_run(config, api, proxy) as run:
            run.soak({"driver": 0.5, "proxy": 0.5}, (1, 4), BATCH_KILLS)
            api.desk.hurry()
            store = run.finish("batches of a closed teacher")
            _assert_each_row_once(store, number, 0.5, run.notes)
            assert api.desk.as_json()["batched_rows"] == number
