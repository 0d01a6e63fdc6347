"""Batches end to end, against the scripted endpoint: every row once, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from raystill.errors import ConfigError, EnvironmentFault, RemoteError
from raystill.store.reader import iter_tables
from raystill.store.verify import verify_store
from raystill.teacher.api.ledger import load_spending
from raystill.teacher.batch_api.ask import has_live_batches, require_no_live_batches
from raystill.testing.fault_proxy import FaultProxy
from raystill.testing.scripted_answer import answers_messages
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_batches import BatchScript

MakeJob = Callable[..., Any]
JOB = Path(__file__).parent / "batch_job.py"


def _rows(job: Any) -> list[dict[str, Any]]:
    columns = ("key", "messages", "completion", "cost_usd")
    return [row for table in iter_tables(job.store, columns=columns) for row in table.to_pylist()]


def _rejects(job: Any) -> dict[str, tuple[str, int]]:
    columns = ("prompt_id", "code", "attempts")
    tables = iter_tables(job.store, kind="rejects", columns=columns)
    return {row["prompt_id"]: (row["code"], row["attempts"]) for t in tables for row in t.to_pylist()}


def _assert_all_once(job: Any, count: int | None = None) -> None:
    rows = _rows(job)
    assert len(rows) == (len(job.texts) if count is None else count)
    assert len({row["key"] for row in rows}) == len(rows)
    assert all(answers_messages(json.loads(row["messages"]), row["completion"]) for row in rows)
    records = [json.loads(path.read_text()) for path in (job.store.path / "batches").glob("*.json")]
    assert {record["state"] for record in records} == {"settled"}
    assert not list((job.store.path / "batches").glob("*.jsonl"))


def _settled(job: Any) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in job.log.read_text().splitlines()]
    return [event for event in events if event["event"] == "batch_settled"]


def test_rows_are_cut_at_the_limits_and_joined_by_custom_id(make_job: MakeJob) -> None:
    """F11: in any order, some of them twice, which is counted."""
    with ScriptedApi(batches=BatchScript(max_rows=20, duplicates=0.3)) as api:
        job = make_job(api.base_url, 50, max_rows=20, max_live=2)
        progress = job.run()
        assert (progress.done, progress.rejected) == (50, 0)
        _assert_all_once(job)
        batches = api.desk.as_json()["batches"]
        assert sorted(batch["request_counts"]["total"] for batch in batches) == [10, 20, 20]
        assert sum(event["duplicates"] for event in _settled(job)) > 0
        again = job.run()
        assert again.total == 0
        assert api.desk.as_json()["batched_rows"] == 50


def test_files_are_cut_at_the_limit_of_bytes(make_job: MakeJob) -> None:
    with ScriptedApi(batches=BatchScript(max_bytes=3000)) as api:
        texts = [*(f"question {index}" for index in range(30)), "too long " * 400]
        job = make_job(api.base_url, 0, texts=texts, max_bytes=3000)
        job.run()
        _assert_all_once(job, 30)
        assert len(api.desk.as_json()["batches"]) > 2
        assert _rejects(job)["too long too long too long too long too "[:40]] == ("prompt_too_long", 0)


def test_bad_rows_are_rejected_and_flaky_ones_asked_again(make_job: MakeJob) -> None:
    with ScriptedApi(batches=BatchScript(flaky=0.4)) as api:
        job = make_job(api.base_url, 0, texts=[*(f"q {i}" for i in range(30)), "<<error>>", "<<empty>>"])
        progress = job.run()
        assert (progress.done, progress.rejected) == (30, 2)
        _assert_all_once(job, 30)
        codes = {prompt: code for prompt, (code, _) in _rejects(job).items()}
        assert codes == {"<<error>>": "content_filter", "<<empty>>": "empty"}
        asked = api.desk.as_json()["batched_by_body"]
        assert max(asked.values()) == 2
        assert sum(event["asked_again"] for event in _settled(job)) == sum(asked.values()) - 32


def test_expired_and_failed_batches_are_asked_again_for_what_they_lack(make_job: MakeJob) -> None:
    with ScriptedApi(batches=BatchScript(expire_after={0: 7}, failing=frozenset({1}))) as api:
        job = make_job(api.base_url, 20)
        job.run()
        _assert_all_once(job)
        desk = api.desk.as_json()
        assert [batch["status"] for batch in desk["batches"]] == ["expired", "failed", "completed"]
        assert desk["batched_rows"] == 20


def test_rows_that_never_come_are_rejected_after_the_last_attempt(make_job: MakeJob) -> None:
    with ScriptedApi(batches=BatchScript(expire_after=dict.fromkeys(range(9), 0))) as api:
        job = make_job(api.base_url, 3, max_attempts=2)
        progress = job.run()
        assert (progress.done, progress.rejected) == (0, 3)
        assert set(_rejects(job).values()) == {("expired", 2)}


def test_the_budget_bounds_batches_and_a_higher_one_resumes(make_job: MakeJob) -> None:
    prices = {"prompt": 1000.0, "completion": 1000.0, "batch_factor": 0.5}
    with ScriptedApi() as api:
        job = make_job(api.base_url, 40, prices=prices, max_cost_usd=0.3)
        with pytest.raises(RemoteError, match="budget is used up"):
            job.run()
        first = len(_rows(job))
        assert 0 < first < 40
        assert load_spending(job.store).spent_usd <= 0.3
        dataclasses.replace(job, max_cost_usd=100.0).run()
        _assert_all_once(job)
        used = api.counts.prompt_tokens + api.counts.completion_tokens
        assert load_spending(job.store).spent_usd == pytest.approx(used * 0.0005)
        assert sum(row["cost_usd"] for row in _rows(job)) == pytest.approx(used * 0.0005)
        assert api.desk.as_json()["batched_rows"] == 40


def test_a_provider_that_holds_fewer_rows_gets_smaller_batches(make_job: MakeJob) -> None:
    with ScriptedApi(batches=BatchScript(max_enqueued_rows=12)) as api:
        job = make_job(api.base_url, 40, max_attempts=1)
        job.run()
        _assert_all_once(job)
        assert api.desk.as_json()["batched_rows"] == 40


@pytest.mark.parametrize(
    "faults",
    [
        ["429=0.05:0.15", "503:0.1", "reset:0.05"],
        ["half_body:0.2", "bad_json:0.2", "html:0.1"],
        ["reset_after:0.3"],
        ["wrong_id:0.2", "reorder:0.2", "duplicate:0.2"],
    ],
)
def test_a_bad_network_neither_loses_nor_pays_twice(make_job: MakeJob, faults: list[str]) -> None:
    paths = ["/v1/files", "/v1/batches"] if "wrong_id" not in faults[0] else ["/v1/files/"]
    with ScriptedApi() as api, FaultProxy(api.url, faults, paths=paths, seed=4) as proxy:
        job = make_job(proxy.base_url, 60, max_rows=10)
        job.run()
        _assert_all_once(job)
        assert api.desk.as_json()["batched_rows"] == 60
        assert sum(proxy.stats["faults"].values()) > 1


def test_what_no_line_speaks_of_is_asked_again(make_job: MakeJob) -> None:
    # Every download of the first batch's results carries other ids; then the rows are asked again.
    with (
        ScriptedApi() as api,
        FaultProxy(api.url, ["wrong_id@1,2,3"], paths=["/v1/files/"]) as proxy,
    ):
        job = make_job(proxy.base_url, 5, prices={"prompt": 1.0, "completion": 1.0})
        job.run()
        _assert_all_once(job)
        assert _settled(job)[0]["strangers"] == 5
        assert load_spending(job.store).at_risk_usd > 0


def test_a_refused_key_stops_at_once(make_job: MakeJob) -> None:
    with ScriptedApi() as api, FaultProxy(api.url, ["401:1.0"], paths=["/v1/"]) as proxy:
        job = make_job(proxy.base_url, 5)
        with pytest.raises(RemoteError, match="refuses every request"):
            job.run()
        assert proxy.stats["requests"] == 1


def test_an_endpoint_without_a_batch_api_is_named(make_job: MakeJob) -> None:
    with ScriptedApi() as api:
        job = make_job(f"{api.url}/nowhere", 5)
        with pytest.raises(RemoteError, match="knows nothing"):
            job.run()


def test_one_run_looks_after_a_store(make_job: MakeJob) -> None:
    """F30."""
    with ScriptedApi() as api:
        job = make_job(api.base_url, 5)
        (job.store.path / "batches").mkdir()
        with (
            FileLock(job.store.path / "batches" / "book.lock"),
            pytest.raises(EnvironmentFault, match="another run"),
        ):
            job.run()


def _start(job: Any, failpoint: str = "") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAYSTILL_FAILPOINT": failpoint}
    arguments = json.dumps(dataclasses.asdict(job))
    return subprocess.Popen([sys.executable, str(JOB), arguments], env=environment, stderr=subprocess.PIPE)


STEPS = [
    "batch:before_planned:1",
    "batch:before_uploaded:1",
    "batch:before_created:1",
    "batch:after_created:1",
    "batch:after_ended:1",
    "store:before_commit:2",
    "batch:before_settled:1",
    "batch:before_planned:3",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_asks_for_nothing_twice(make_job: MakeJob, step: str) -> None:
    """F1."""
    with ScriptedApi(batches=BatchScript(expire_after={0: 5}, duplicates=0.2)) as api:
        job = make_job(api.base_url, 20, max_rows=12, prices={"prompt": 1.0, "completion": 1.0})
        killed = _start(job, step)
        assert killed.wait(300) == -signal.SIGKILL, killed.communicate()
        job.run()
        _assert_all_once(job)
        assert api.desk.as_json()["batched_rows"] == 20
        used = api.counts.prompt_tokens + api.counts.completion_tokens
        assert load_spending(job.store).spent_usd == pytest.approx(used * 0.5e-6)
        assert verify_store(job.store.path).ok


def test_an_interrupt_leaves_batches_running_and_says_so(make_job: MakeJob) -> None:
    """F4."""
    with ScriptedApi(batches=BatchScript(rows_per_second=1e-3)) as api:
        job = make_job(api.base_url, 20)
        driver = _start(job)
        deadline = time.monotonic() + 300
        while not job.log.exists() or "batch_created" not in job.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.send_signal(signal.SIGINT)
        driver.wait(300)
        assert "1 batches with 20 rows go on" in job.log.read_text()
        api.desk.hurry()
        smaller = dataclasses.replace(job, texts=job.texts[:10])
        smaller.run()
        # What was paid for is stored, also rows that this run no longer asks for.
        _assert_all_once(job)
        assert api.desk.as_json()["batched_rows"] == 20


def test_asking_online_while_a_batch_holds_rows_is_refused(make_job: MakeJob) -> None:
    with ScriptedApi(batches=BatchScript(rows_per_second=0.1)) as api:
        job = make_job(api.base_url, 5)
        killed = _start(job, "batch:after_created:1")
        assert killed.wait(300) == -signal.SIGKILL
    assert has_live_batches(job.store)
    with pytest.raises(ConfigError, match="1 batches with 5 rows"):
        require_no_live_batches(job.store)
