"""kill -9 on worker and driver of a closed teacher's run: nothing lost, nothing stored twice (F1, F2).

The driver's environment holds a key that no file and no output may show.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from closed_driver import IN_FLIGHT, PROBES, UNSYNCED, closed_config, find_workers, spawn, wait_for_answers

from raystill.config.schema import Config
from raystill.errors import EnvironmentFault
from raystill.run.paths import RunPaths
from raystill.store.claim import claim_store
from raystill.store.reader import load_rows
from raystill.store.recover import dead_journals, recover_journals
from raystill.store.store import load_store
from raystill.store.verify import verify_store
from raystill.teacher.api.ledger import RiskEntry, RiskLedger, load_spending
from raystill.teacher.batch_api.overview import list_live_batches
from raystill.testing.object_storage import object_storage
from raystill.testing.scripted_answer import answers_messages
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_chat import Capabilities, Latency

pytestmark = pytest.mark.ray
DRIVER = Path(__file__).resolve().parents[1] / "killed_driver.py"
KEY = "canary-7f3a9b-key"
PRICES = {"prompt": 1.0, "completion": 2.0}
# On object storage, answered and not yet durable is also what waits for the loop.
UNSYNCED_ON_S3 = 256


def command_of(config: Config) -> list[str]:
    return [sys.executable, str(DRIVER), config.model_dump_json()]


def test_kills_cost_what_was_in_flight_and_the_key_is_written_nowhere(
    tmp_path: Path, save_prompt_table: Callable[..., RunPaths]
) -> None:
    """F1, F2: the driver, then, in the next run, a worker."""
    log = tmp_path / "driver.log"
    script = {"capabilities": Capabilities(api_key=KEY), "latency": Latency(0.25)}
    with ScriptedApi(**script) as api:
        config = closed_config(tmp_path, "killed", api, api_key_env="CANARY_KEY", prices=PRICES)
        paths = save_prompt_table(config, 300)
        driver = spawn(command_of(config), log, CANARY_KEY=KEY)
        wait_for_answers(api, 80, driver, log)
        workers = find_workers(driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        for worker in workers:
            worker.kill()
        assert psutil.wait_procs(workers, timeout=300)[1] == []
        answered = api.counts.answered
        store = load_store(paths.store)
        assert dead_journals(store)
        recover_journals(store)
        kept = {row.key for row in load_rows(store)}
        assert answered - PROBES - len(kept) <= IN_FLIGHT + UNSYNCED

        driver = spawn(command_of(config), log, CANARY_KEY=KEY)
        wait_for_answers(api, answered + 60, driver, log)
        find_workers(driver)[0].kill()
        assert driver.wait(timeout=600) == 0, log.read_text()[-3000:]
        most_asked = api.counts.as_json()["most_asked"]
        requests = api.counts.requests
    rows = load_rows(store)
    assert len({row.key for row in rows}) == len(rows) == 300
    assert kept <= {row.key for row in rows}
    assert all(answers_messages(json.loads(row.messages), row.completion) for row in rows)
    assert requests <= 300 + 2 * PROBES + 2 * (IN_FLIGHT + UNSYNCED)
    assert most_asked <= 3
    for path in [log, *tmp_path.rglob("*")]:
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_on_object_storage_a_killed_worker_loses_nothing_either(
    tmp_path: Path, save_prompt_table: Callable[..., RunPaths]
) -> None:
    """F2."""
    log, number = tmp_path / "driver.log", 200
    with object_storage() as bucket, ScriptedApi(latency=Latency(0.25)) as api:
        config = closed_config(tmp_path, "remote", api, prices=PRICES, path=f"{bucket}/killed")
        paths = save_prompt_table(config, number)
        driver = spawn(command_of(config), log, CANARY_KEY=KEY)
        wait_for_answers(api, 60, driver, log)
        find_workers(driver)[0].kill()
        store = load_store(paths.store)
        with pytest.raises(EnvironmentFault, match="another run's answers"):
            claim_store(store, tmp_path / "other_run")
        assert driver.wait(timeout=600) == 0, log.read_text()[-3000:]
        rows = load_rows(store)
        assert len({row.key for row in rows}) == len(rows) == number
        assert all(answers_messages(json.loads(row.messages), row.completion) for row in rows)
        assert api.counts.requests <= number + 10 + IN_FLIGHT + UNSYNCED_ON_S3
        assert verify_store(store.path).num_duplicates == 0
        before = load_spending(store)
        assert before.rows_usd == pytest.approx(sum(row.cost_usd for row in rows)) and before.probes_usd > 0.0
        RiskLedger(store).append([RiskEntry("0" * 32, "timeout", 0.5), RiskEntry("1" * 32, "reset", 0.25)])
        assert load_spending(store).at_risk_usd == before.at_risk_usd + 0.75
        # Nothing is left on this machine, and nobody owns the store any longer.
        assert not store.layout.owner_json.exists() and not store.layout.journals.exists()
        assert list_live_batches(store.path) == []
        claim_store(store, tmp_path / "other_run")
