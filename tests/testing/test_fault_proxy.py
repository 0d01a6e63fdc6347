"""Every fault, met by the openai package and by a bare HTTP client."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import openai
import pytest

from raystill.testing.fault_proxy import FaultProxy
from raystill.testing.scripted_answer import answers_messages
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.server import ServerProcess


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedApi]:
    """One endpoint behind all proxies."""
    with ScriptedApi() as endpoint:
        yield endpoint


def _body(text: str = "x") -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}]}


def _post(proxy: FaultProxy, text: str = "x", timeout: float = 60.0) -> httpx.Response:
    return httpx.post(f"{proxy.base_url}/chat/completions", json=_body(text), timeout=timeout)


def test_without_faults_it_is_transparent(api: ScriptedApi) -> None:
    with FaultProxy(api.url) as proxy:
        client = openai.OpenAI(base_url=proxy.base_url, api_key="none")
        answer = client.chat.completions.create(**_body("hello"))
        assert answers_messages(_body("hello")["messages"], answer.choices[0].message.content or "")
        assert [model.id for model in client.models.list()] == ["scripted"]
        assert proxy.stats == {"requests": 1, "forwarded": 2, "faults": {}}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 401, 403, 404])
def test_statuses_carry_openai_errors_and_are_not_forwarded(api: ScriptedApi, status: int) -> None:
    before = api.counts.requests
    with FaultProxy(api.url, [f"{status}@1"]) as proxy:
        refused, fine = _post(proxy), _post(proxy)
    assert (refused.status_code, fine.status_code) == (status, 200)
    assert "Retry-After" not in refused.headers
    assert refused.json()["error"]["message"]
    assert api.counts.requests == before + 1


def test_retry_after_is_seconds_or_a_date(api: ScriptedApi) -> None:
    with FaultProxy(api.url, ["429=1.5@1", "503=date+60@2"]) as proxy:
        assert _post(proxy).headers["Retry-After"] == "1.5"
        before = time.time()
        date = parsedate_to_datetime(_post(proxy).headers["Retry-After"])
    assert before + 59 < date.timestamp() <= time.time() + 60


@pytest.mark.parametrize(("kind", "forwards"), [("reset", 0), ("reset_after", 1), ("half_body", 1)])
def test_connections_break(api: ScriptedApi, kind: str, forwards: int) -> None:
    with FaultProxy(api.url, [f"{kind}@1"]) as proxy:
        with pytest.raises(httpx.TransportError):
            _post(proxy)
        assert proxy.stats["forwarded"] == forwards
        assert _post(proxy).status_code == 200


@pytest.mark.parametrize("kind", ["hang", "slow=1"])
def test_some_answers_never_end(api: ScriptedApi, kind: str) -> None:
    with FaultProxy(api.url, [f"{kind}@1"]) as proxy:
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):  # noqa: SIM117
            with client.stream(
                "POST",
                f"{proxy.base_url}/chat/completions",
                json=_body(),
                timeout=httpx.Timeout(60, read=0.5),
            ) as response:
                response.read()
        assert _post(proxy).status_code == 200


def test_latency_delays(api: ScriptedApi) -> None:
    with FaultProxy(api.url, ["latency=0.3@1"]) as proxy:
        started = time.monotonic()
        assert _post(proxy).status_code == 200
    assert time.monotonic() - started >= 0.3


def test_bodies_that_are_no_answer(api: ScriptedApi) -> None:
    faults = ["html@1", "bad_json@2", "error_200@3", "empty_choices@4", "null_content@5", "wrong_id@6"]
    with FaultProxy(api.url, faults) as proxy:
        html, bad, error, empty, null, wrong, sound = [_post(proxy) for _ in range(7)]
        assert proxy.stats["faults"] == {fault.partition("@")[0]: 1 for fault in faults}
    assert {answer.status_code for answer in (html, bad, error, empty, null, wrong)} == {200}
    assert html.headers["Content-Type"].startswith("text/html")
    with pytest.raises(ValueError):
        bad.json()
    assert "error" in error.json()
    assert empty.json()["choices"] == []
    assert null.json()["choices"][0]["message"]["content"] is None
    assert wrong.json()["id"] != sound.json()["id"]
    assert wrong.json()["choices"] == sound.json()["choices"]


def test_duplicates_reach_the_upstream_twice(api: ScriptedApi) -> None:
    before = api.counts.answered
    with FaultProxy(api.url, ["duplicate@1"]) as proxy:
        assert _post(proxy).status_code == 200
    assert api.counts.answered == before + 2


def test_a_reordered_answer_comes_after_a_later_one(api: ScriptedApi) -> None:
    finished: list[str] = []

    async def ask(client: httpx.AsyncClient, proxy: FaultProxy, text: str) -> None:
        await client.post(f"{proxy.base_url}/chat/completions", json=_body(text))
        finished.append(text)

    async def ask_both() -> None:
        async with FaultProxy(api.url, ["reorder=60@1"]) as proxy, httpx.AsyncClient(timeout=60) as client:
            first = asyncio.create_task(ask(client, proxy, "first"))
            while proxy.stats["requests"] == 0:
                await asyncio.sleep(0.01)
            await asyncio.gather(first, ask(client, proxy, "second"))

    asyncio.run(ask_both())
    assert finished == ["second", "first"]


def test_result_files_are_mangled_line_by_line(api: ScriptedApi) -> None:
    rows = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": _body(name)}
        for name in ("a", "b", "c")
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    straight = openai.OpenAI(base_url=api.base_url, api_key="none")
    file = straight.files.create(file=("b.jsonl", data), purpose="batch").id
    faults = ["duplicate@1", "reorder@2", "wrong_id@3", "empty_choices@4"]
    with FaultProxy(api.url, faults, paths=["/v1/files/"]) as proxy:
        address = f"{proxy.base_url}/files/{file}/content"
        twice, backwards, wrong, same = [
            [json.loads(line) for line in httpx.get(address, timeout=60).text.splitlines()] for _ in range(4)
        ]
    assert [row["custom_id"] for row in twice] == ["a", "a", "b", "b", "c", "c"]
    assert [row["custom_id"] for row in backwards] == ["c", "b", "a"]
    assert {row["custom_id"] for row in wrong} == {"of-another-custom_id"}
    assert same == rows


def test_it_runs_as_a_process_and_says_what_it_did(api: ScriptedApi) -> None:
    arguments = ["--upstream", api.url, "--fault", "503@1", "--fault", "429=2:0.0"]
    with ServerProcess("raystill.testing.fault_proxy", arguments) as server:
        assert httpx.post(f"{server.url}/v1/chat/completions", json=_body(), timeout=60).status_code == 503
        assert httpx.post(f"{server.url}/v1/chat/completions", json=_body(), timeout=60).status_code == 200
        stats = json.loads(urllib.request.urlopen(f"{server.url}/__stats").read())
    assert stats == {"requests": 2, "forwarded": 1, "faults": {"503": 1}}


def test_an_upstream_that_is_gone_is_a_bad_gateway() -> None:
    with FaultProxy("http://127.0.0.1:9") as proxy:
        assert _post(proxy).status_code == 502
