"""The scripted endpoint, asked through the openai package as the product asks it."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from raystill.errors import ConfigError
from raystill.testing.scripted_answer import answers_messages, schema_instance, scripted_answer
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_batches import BatchScript
from raystill.testing.scripted_chat import Capabilities, Latency, body_hash
from raystill.testing.server import ServerProcess


def _messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def _client(api: ScriptedApi) -> openai.OpenAI:
    return openai.OpenAI(base_url=api.base_url, api_key="none", max_retries=0)


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    """An endpoint without latency."""
    with ScriptedApi() as endpoint:
        yield endpoint


def test_an_answer_belongs_to_its_messages_alone(api: ScriptedApi) -> None:
    client = _client(api)
    first, again, other = (
        client.chat.completions.create(model="scripted", messages=_messages(text)).choices[0].message.content
        for text in ("one", "one", "two")
    )
    assert first == again
    assert first is not None and other is not None
    assert answers_messages(_messages("one"), first)
    assert not answers_messages(_messages("one"), other)


def test_usage_counts_what_was_answered(api: ScriptedApi) -> None:
    answer = _client(api).chat.completions.create(model="scripted", messages=_messages("one two"), n=3)
    expected = sum(len(scripted_answer(_messages("one two"), index=index).tokens) for index in range(3))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, expected)
    assert api.counts.completion_tokens == expected


def test_seeds_vary_an_answer_only_above_temperature_zero(api: ScriptedApi) -> None:
    def ask(seed: int, temperature: float) -> str | None:
        answer = _client(api).chat.completions.create(
            model="scripted", messages=_messages("x"), seed=seed, temperature=temperature
        )
        return answer.choices[0].message.content

    assert ask(1, 0.0) == ask(2, 0.0)
    assert ask(1, 1.0) != ask(2, 1.0)


def test_logprobs_cover_every_token_and_never_more_than_the_endpoint_has(api: ScriptedApi) -> None:
    client = _client(api)
    answer = client.chat.completions.create(
        model="scripted", messages=_messages("x"), logprobs=True, top_logprobs=5
    )
    entries = answer.choices[0].logprobs
    assert entries is not None and entries.content is not None
    assert "".join(entry.token for entry in entries.content) == answer.choices[0].message.content
    assert all(len(entry.top_logprobs) == 5 for entry in entries.content)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="scripted", messages=_messages("x"), logprobs=True, top_logprobs=20 + 1
        )


def test_what_the_endpoint_lacks_is_refused_or_ignored() -> None:
    for ignores in (False, True):
        lacking = Capabilities(max_top_logprobs=0, has_seed=False, ignores=ignores)
        with ScriptedApi(capabilities=lacking) as api:

            def ask(api: ScriptedApi = api) -> Any:
                return _client(api).chat.completions.create(
                    model="scripted", messages=_messages("x"), logprobs=True, top_logprobs=3, seed=4
                )

            if ignores:
                assert ask().choices[0].logprobs is None
            else:
                with pytest.raises(openai.BadRequestError):
                    ask()


@pytest.mark.parametrize(
    ("text", "finish", "content"), [("<<refuse>>", "stop", None), ("<<empty>>", "stop", "")]
)
def test_markers_script_the_unusual(api: ScriptedApi, text: str, finish: str, content: str | None) -> None:
    choice = _client(api).chat.completions.create(model="scripted", messages=_messages(text)).choices[0]
    assert (choice.finish_reason, choice.message.content) == (finish, content)


def test_long_answers_are_cut_at_the_limit(api: ScriptedApi) -> None:
    answer = _client(api).chat.completions.create(
        model="scripted", messages=_messages("<<long>>"), max_tokens=7
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 7


def test_errors_are_openai_errors() -> None:
    with ScriptedApi(capabilities=Capabilities(api_key="right")) as api:
        with pytest.raises(openai.AuthenticationError):
            _client(api).models.list()
        client = openai.OpenAI(base_url=api.base_url, api_key="right", max_retries=0)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gone", messages=_messages("x"))
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="scripted", messages=_messages("<<error>>"))
        assert [model.id for model in client.models.list()] == ["scripted"]


def test_json_schema_and_tools_shape_the_answer(api: ScriptedApi) -> None:
    schema = {"type": "object", "properties": {"name": {"const": "a"}, "sizes": {"type": "array"}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    tools: Any = [{"type": "function", "function": {"name": "look_up", "parameters": schema}}]
    client = _client(api)
    shaped = client.chat.completions.create(
        model="scripted", messages=_messages("x"), response_format=form
    ).choices[0]
    called = client.chat.completions.create(
        model="scripted", messages=_messages("x"), tools=tools, tool_choice="required"
    ).choices[0]
    assert (
        json.loads(shaped.message.content or "")
        == schema_instance(schema)
        == {"name": "a", "sizes": ["text"]}
    )
    assert called.finish_reason == "tool_calls"
    assert called.message.tool_calls is not None
    assert called.message.tool_calls[0].function.name == "look_up"  # type: ignore[union-attr]


def test_counts_name_bodies_and_requests_in_flight() -> None:
    with ScriptedApi(latency=Latency(median=1.0)) as api:

        async def ask_all() -> None:
            async with openai.AsyncOpenAI(base_url=api.base_url, api_key="none") as client:
                texts = ("a", "a", "b")
                await asyncio.gather(
                    *(client.chat.completions.create(model="scripted", messages=_messages(t)) for t in texts)
                )

        asyncio.run(ask_all())
        stats = json.loads(urllib.request.urlopen(f"{api.url}/__stats").read())
    assert (stats["requests"], stats["distinct"], stats["most_asked"]) == (3, 2, 2)
    assert stats["max_in_flight"] == 3
    assert stats["by_body"][body_hash({"model": "scripted", "messages": _messages("a")})] == 2


def test_latency_stays_within_its_bounds_and_is_lognormal() -> None:
    noise = random.Random(0)
    drawn = sorted(Latency(0.158, 0.6, 0.05, 0.5).draw(noise) for _ in range(2000))
    assert drawn[0] >= 0.05
    assert drawn[-1] <= 0.5
    assert drawn[1000] == pytest.approx(0.158, rel=0.1)


def _lines(*texts: str) -> bytes:
    rows = [
        {
            "custom_id": f"row-{text}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "scripted", "messages": _messages(text)},
        }
        for text in texts
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _run_batch(client: openai.OpenAI, data: bytes) -> Any:
    file = client.files.create(file=("batch.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"purpose": "test"},
    )
    deadline = time.monotonic() + 300
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def _results(client: openai.OpenAI, file_id: str | None) -> list[Any]:
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_batch_answers_by_custom_id_and_keeps_errors_apart(api: ScriptedApi) -> None:
    client = _client(api)
    batch = _run_batch(client, _lines("a", "b", "<<error>>"))
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    results = {row["custom_id"]: row["response"] for row in _results(client, batch.output_file_id)}
    assert set(results) == {"row-a", "row-b"}
    content = results["row-a"]["body"]["choices"][0]["message"]["content"]
    assert answers_messages(_messages("a"), content)
    (error,) = _results(client, batch.error_file_id)
    assert (error["custom_id"], error["response"]["status_code"]) == ("row-<<error>>", 400)
    assert [found.metadata for found in client.batches.list()] == [{"purpose": "test"}]


def test_a_batch_expires_with_partial_results() -> None:
    script = BatchScript(expire_after={0: 2}, duplicates=1.0)
    with ScriptedApi(batches=script) as api:
        client = _client(api)
        batch = _run_batch(client, _lines("a", "b", "c"))
        assert batch.status == "expired"
        assert len(_results(client, batch.output_file_id)) == 4  # two rows, each delivered twice
        (error,) = _results(client, batch.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("row-c", "batch_expired")


def test_a_batch_over_the_limits_fails() -> None:
    with ScriptedApi(batches=BatchScript(max_rows=1, max_bytes=1000)) as api:
        client = _client(api)
        batch = _run_batch(client, _lines("a", "b"))
        assert batch.status == "failed"
        assert batch.errors.data[0].code == "too_many_requests"
        with pytest.raises(openai.APIStatusError):
            client.files.create(file=("big.jsonl", b"x" * 2000), purpose="batch")


def test_a_cancelled_batch_keeps_what_it_has() -> None:
    with ScriptedApi(batches=BatchScript(rows_per_second=20.0)) as api:
        client = _client(api)
        file = client.files.create(file=("b.jsonl", _lines(*map(str, range(1000)))), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while client.batches.retrieve(batch.id).request_counts.completed < 1:  # type: ignore[union-attr]
            time.sleep(0.01)
        client.batches.cancel(batch.id)
        while (batch := client.batches.retrieve(batch.id)).status != "cancelled":
            time.sleep(0.01)
        kept = _results(client, batch.output_file_id)
        lost = _results(client, batch.error_file_id)
    assert len(kept) >= 1
    assert len(kept) + len(lost) == 1000


def test_a_slow_provider_can_be_hurried() -> None:
    with ScriptedApi(batches=BatchScript(rows_per_second=1e-3)) as api:
        client = _client(api)
        file = client.files.create(file=("b.jsonl", _lines("a", "b")), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        api.desk.hurry()
        while (batch := client.batches.retrieve(batch.id)).status != "completed":
            time.sleep(0.01)
        assert len(_results(client, batch.output_file_id)) == 2


def test_it_runs_as_a_process_and_keeps_its_port() -> None:
    with ServerProcess("raystill.testing.scripted_api", ["--model", "other"]) as server:
        address = server.url
        server.kill()
        server.start()
        assert server.url == address
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["other"]


def test_error_statuses_can_be_scripted_without_a_proxy() -> None:
    with ScriptedApi(faults=["429=1@1"]) as api:
        with pytest.raises(openai.RateLimitError) as refused:
            _client(api).chat.completions.create(model="scripted", messages=_messages("x"))
        assert refused.value.response.headers["Retry-After"] == "1"
        assert _client(api).chat.completions.create(model="scripted", messages=_messages("x")).choices
    with pytest.raises(ConfigError, match="can't do hang"):
        ScriptedApi(faults=["hang@1"])
