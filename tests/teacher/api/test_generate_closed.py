"""The stage generate with a closed teacher: on a real Ray, against a scripted endpoint and its faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raystill.config.schema import Config
from raystill.errors import ConfigError, EnvironmentFault, RaystillError, RemoteError
from raystill.run.paths import RunPaths
from raystill.run.stage import StageOutcome, execute
from raystill.store.reader import load_rows
from raystill.store.rejects import load_rejects
from raystill.store.store import load_store
from raystill.store.verify import verify_store
from raystill.teacher.api.ledger import load_spending
from raystill.teacher.drain import Drain
from raystill.teacher.generate_stage import GENERATE_STAGE
from raystill.testing.fault_proxy import FaultProxy
from raystill.testing.scripted_answer import answers_messages
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_chat import Latency

pytestmark = pytest.mark.ray
Event = dict[str, Any]
SavePrompts = Callable[..., RunPaths]


@pytest.fixture
def make_closed(tmp_path: Path) -> Callable[..., Config]:
    """A configuration for an endpoint; keyword arguments go below `teacher.closed`."""

    def make(base_url: str, signals: dict[str, Any] | None = None, **closed: Any) -> Config:
        endpoint = {
            "base_url": base_url,
            "api_key_env": None,
            "request_timeout_s": 60,
            **closed.pop("endpoint", {}),
        }
        pipeline = {"batch_size": 8, "max_new_tokens": 40, **closed.pop("pipeline", {})}
        model = {"name": "scripted", **closed.pop("model", {})}
        section = {"model": model, "endpoint": endpoint, "pipeline": pipeline, **closed}
        return Config.model_validate(
            {
                "run": {"dir": str(tmp_path / "runs"), "name": "closed"},
                "teacher": {
                    "closed": section,
                    "signals": signals or {},
                    "store": {"num_partitions": 2, "rows_per_part": 64},
                },
            }
        )

    return make


def generate(config: Config, events: list[Event] | None = None) -> StageOutcome:
    listen = None if events is None else events.append
    return execute(GENERATE_STAGE, config, RunPaths.from_config(config), on_event=listen)


def check_store(paths: RunPaths) -> int:
    """Rows stored; every one answers its own prompt, once, and the costs add up."""
    store = load_store(paths.store)
    assert verify_store(paths.store).ok
    rows = load_rows(store)
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert answers_messages(json.loads(row.messages), row.completion)
        assert row.usage is not None and json.loads(row.usage)["cost_usd"] == row.cost_usd
    assert load_spending(store).rows_usd == pytest.approx(sum(row.cost_usd for row in rows))
    return len(rows)


@pytest.mark.parametrize("num_clients", [1, 2])
def test_every_row_is_asked_once_stored_and_reused(
    local_ray: None, make_closed: Any, save_prompt_table: SavePrompts, num_clients: int
) -> None:
    with ScriptedApi() as api:
        config = make_closed(
            api.base_url, limits={"num_clients": num_clients}, prices={"prompt": 1.0, "completion": 2.0},
            budget={"max_cost_usd": 1.0},
        )  # fmt: skip
        paths = save_prompt_table(config, 120)
        events: list[Event] = []
        outcome = generate(config, events)
        assert outcome.manifest.counts["done"] == 120 == check_store(paths)
        assert api.counts.as_json()["most_asked"] == 1
        assert api.counts.max_in_flight <= 8
        last = [event for event in events if event["event"] == "progress"][-1]
        assert (last["done"], last["requests"], last["retries"]) == (120, 120, 0)
        assert (last["in_flight"], last["http_429"], last["http_5xx"]) == (0, 0, 0)
        assert last["cost_usd"] == pytest.approx(load_spending(load_store(paths.store)).rows_usd, abs=1e-6)
        asked = api.counts.requests
        assert execute(GENERATE_STAGE, config, paths, fresh=True).manifest.counts["reused"] == 120
        assert api.counts.requests == asked


def test_faults_cost_requests_and_no_rows(
    local_ray: None, make_closed: Any, save_prompt_table: SavePrompts
) -> None:
    """F6."""
    faults = ["429=0.1:0.04", "503:0.03", "half_body:0.03", "html:0.03", "reset:0.03", "error_200:0.02"]
    with ScriptedApi() as api, FaultProxy(api.url, faults, seed=3) as proxy:
        config = make_closed(proxy.base_url, prices={"completion": 1.0})
        paths = save_prompt_table(config, 150)
        events: list[Event] = []
        outcome = generate(config, events)
    assert outcome.manifest.counts["done"] == 150 == check_store(paths)
    assert outcome.manifest.metrics["api_retries"] > 0
    last = [event for event in events if event["event"] == "progress"][-1]
    assert last["in_flight"] == 0 and 0 < last["http_429"] + last["http_5xx"] <= last["retries"]
    spending = load_spending(load_store(paths.store))
    assert spending.at_risk_usd > 0  # half bodies may have been billed


def test_a_budget_stops_cleanly_and_a_higher_one_goes_on(
    local_ray: None, make_closed: Any, save_prompt_table: SavePrompts
) -> None:
    """F12."""
    with ScriptedApi() as api:
        prices = {"prompt": 100.0, "completion": 200.0}
        config = make_closed(api.base_url, prices=prices, budget={"max_cost_usd": 0.2})
        paths = save_prompt_table(config, 120)
        with pytest.raises(RemoteError, match="the budget is used up"):
            generate(config)
        first = check_store(paths)
        assert 0 < first < 120
        spending = load_spending(load_store(paths.store))
        assert 0.1 < spending.spent_usd <= 0.2
        billed = api.counts.prompt_tokens * 100e-6 + api.counts.completion_tokens * 200e-6
        assert spending.spent_usd == pytest.approx(billed)
        more = make_closed(api.base_url, prices=prices, budget={"max_cost_usd": 5.0})
        assert generate(more).manifest.counts == {
            "requests": 120, "done": 120, "rejected": 0, "reused": first,
            "cut_off": 0, "completion_tokens": 0,
        }  # fmt: skip
        assert check_store(paths) == 120
        assert api.counts.as_json()["most_asked"] <= 2  # the probe's, confirmed by the second run


def test_an_expensive_run_without_a_cap_sends_nothing(
    local_ray: None, make_closed: Any, save_prompt_table: SavePrompts
) -> None:
    """I46."""
    with ScriptedApi() as api:
        config = make_closed(api.base_url, prices={"prompt": 1000.0, "completion": 1000.0})
        save_prompt_table(config, 50)
        with pytest.raises(
            ConfigError, match=r"50 requests may cost \$[0-9.]+, and there is no cap"
        ) as caught:
            generate(config)
        assert "ask_above_usd" in str(caught.value)
        assert api.counts.requests == 0


@pytest.mark.parametrize(("fault", "hint"), [("401:1.0", "check the key"), ("404:1.0", "model")])
def test_a_refused_key_or_model_costs_one_request(
    local_ray: None, make_closed: Any, save_prompt_table: SavePrompts, fault: str, hint: str
) -> None:
    """F7, I10: at an endpoint."""
    with ScriptedApi() as api, FaultProxy(api.url, [fault]) as proxy:
        config = make_closed(proxy.base_url)
        paths = save_prompt_table(config, 30)
        with pytest.raises(RemoteError, match=hint):
            generate(config)
        assert proxy.stats["requests"] == 1
    assert load_rows(load_store(paths.store)) == []


def test_empty_answers_are_rejected_and_too_many_of_them_stop_the_run(
    local_ray: None, make_closed: Any, save_prompt_table: SavePrompts
) -> None:
    """F8, I47."""
    with ScriptedApi() as api, FaultProxy(api.url, ["null_content:0.6"], seed=1) as proxy:
        config = make_closed(proxy.base_url, prices={"completion": 1.0})
        paths = save_prompt_table(config, 150)
        with pytest.raises(RaystillError, match="answers are empty"):
            generate(config)
    stored = check_store(paths)
    rejects = [reject for part in range(2) for reject in load_rejects(load_store(paths.store), part)]
    assert 0 < stored + len(rejects) < 150
    assert {reject.code for reject in rejects} == {"empty"}
    assert all(reject.cost_usd > 0 for reject in rejects)


def test_an_endpoint_without_logprobs_says_what_follows(
    local_ray: None, make_closed: Any, save_prompt_table: SavePrompts, teacher_dir: Path
) -> None:
    """I29."""
    from raystill.testing.scripted_chat import Capabilities

    with ScriptedApi(capabilities=Capabilities(max_top_logprobs=0)) as api:
        config = make_closed(api.base_url, model={"tokenizer": str(teacher_dir)})
        paths = save_prompt_table(config, 10)
        events: list[Event] = []
        generate(config, events)
        notes = " ".join(event["message"] for event in events if event["event"] == "note")
        assert "returns no logprobs" in notes and "losses.kl_weight" in notes
        rows = load_rows(load_store(paths.store))
        assert all(len(row.completion_token_ids) and row.signal is None for row in rows)
        strict = make_closed(
            api.base_url, model={"tokenizer": str(teacher_dir)}, signals={"capture": "generation"},
        )  # fmt: skip
        strict = strict.model_copy(update={"run": strict.run.model_copy(update={"name": "strict"})})
        save_prompt_table(strict, 10)
        with pytest.raises(ConfigError, match="the endpoint returns no logprobs"):
            generate(strict)


def test_a_run_that_is_told_to_end_asks_for_no_more_and_stores_what_is_in_flight(
    local_ray: None, make_closed: Any, save_prompt_table: SavePrompts
) -> None:
    """F4: without the signal: every answer that was paid for is stored, none is lost on the way."""
    with ScriptedApi(latency=Latency(0.3)) as api:
        config = make_closed(api.base_url)
        paths = save_prompt_table(config, 600)
        events: list[Event] = []
        with ThreadPoolExecutor(1) as driver:
            run = driver.submit(generate, config, events)
            deadline = time.monotonic() + 300
            while api.counts.answered < 30:
                assert not run.done() and time.monotonic() < deadline
                time.sleep(0.05)
            (directory,) = {path.parent for path in paths.stage_dir("generate").rglob("*.up")}
            Drain(directory).ask()
            with pytest.raises(EnvironmentFault, match="told to end"):
                run.result(timeout=300)
        stored = check_store(paths)
    last = [event for event in events if event["event"] == "progress"][-1]
    assert stored == last["requests"] and 20 < stored < 600
