"""One side of the client benchmark in its own process: `ours|sdk|ray URL IN_FLIGHT ROWS PER_MINUTE`.

Prints one JSON object: rows_per_s, and how many of the rows kept are not the answer to their prompt.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np

from raystill.testing.scripted_answer import answers_messages

_MODEL = "scripted"
_MAX_NEW_TOKENS = 64
_ATTEMPTS = 6
_TIMEOUT_SECONDS = 30.0


def _messages(number: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"What is {number * 37 % 911} + {number}? Show steps."}]


def _body(number: int) -> dict[str, Any]:
    return {"model": _MODEL, "messages": _messages(number), "max_tokens": _MAX_NEW_TOKENS, "temperature": 1.0}


def _result(started: float, kept: dict[int, str | None], rows: int) -> dict[str, Any]:
    seconds = time.monotonic() - started
    wrong = sum(1 for number, text in kept.items() if not answers_messages(_messages(number), text or ""))
    return {"rows_per_s": rows / seconds, "kept": len(kept), "wrong": wrong}


class _Observer:
    """What a worker writes down, the benchmark leaves out: the store is not what is measured."""

    def on_request(self, is_retry: bool) -> None:
        """Nothing."""

    def on_ended(self, failure: Any) -> None:
        """Nothing."""

    def on_risk(self, entry: Any) -> None:
        """Nothing."""

    def on_paid(self, paid: Any) -> None:
        """Nothing."""


async def _run_ours(url: str, in_flight: int, rows: int, per_minute: int) -> dict[str, Any]:
    from raystill.config.closed_teacher import ClosedEndpoint, ClosedPrices
    from raystill.teacher.api.address import parse_address
    from raystill.teacher.api.budget import Prices
    from raystill.teacher.api.client import ApiClient
    from raystill.teacher.api.engine import EngineSettings, OpenAIEngine
    from raystill.teacher.api.gate import GateSettings, RequestGate
    from raystill.teacher.api.wire import BodyShape
    from raystill.teacher.engine import GenerationRequest, Sampling
    from raystill.teacher.errors import EngineRowError

    address = parse_address(ClosedEndpoint(base_url=f"{url}/v1", api_key_env=None))
    prices = Prices.from_config(ClosedPrices())
    gate = RequestGate(GateSettings(in_flight, per_minute or None, None, None, _MAX_NEW_TOKENS))
    settings = EngineSettings(BodyShape(_MODEL), prices, address.base_url, in_flight, _ATTEMPTS, "keep")
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=_MAX_NEW_TOKENS)
    kept: dict[int, str | None] = {}
    client = ApiClient(address, None, timeout_s=_TIMEOUT_SECONDS, connections=in_flight, checks_ids=True)
    async with client:
        engine = OpenAIEngine(settings, client, gate, observer=_Observer())
        slots = asyncio.Semaphore(engine.rows_in_flight)

        async def ask(number: int) -> None:
            messages = json.dumps(_messages(number))
            request = GenerationRequest(
                f"{number:032x}", np.zeros(0, np.int32), sampling, number, 0, messages
            )
            async with slots:
                try:
                    kept[number] = (await engine.generate(request)).completion
                except EngineRowError:
                    return

        started = time.monotonic()
        await asyncio.gather(*(ask(number) for number in range(rows)))
        return _result(started, kept, rows)


async def _run_sdk(url: str, in_flight: int, rows: int) -> dict[str, Any]:
    import openai

    kept: dict[int, str | None] = {}
    slots = asyncio.Semaphore(in_flight)
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=_ATTEMPTS - 1, timeout=_TIMEOUT_SECONDS
    ) as client:

        async def ask(number: int) -> None:
            async with slots:
                try:
                    answer = await client.chat.completions.create(**_body(number))
                except openai.OpenAIError:
                    return
            if answer.choices:  # what every example does next would raise otherwise
                kept[number] = answer.choices[0].message.content

        started = time.monotonic()
        await asyncio.gather(*(ask(number) for number in range(rows)))
        return _result(started, kept, rows)


def _run_ray(url: str, rows: int) -> dict[str, Any]:
    import ray.data
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    from raystill.cluster.ray_session import ray_session
    from raystill.config.schema import Config

    processor = build_processor(
        HttpRequestProcessorConfig(
            url=f"{url}/v1/chat/completions", max_retries=_ATTEMPTS - 1, concurrency=1
        ),
        preprocess=lambda row: {"payload": _body(int(row["id"])), "id": row["id"]},
        postprocess=lambda row: {"id": row["id"], "response": json.dumps(row["http_response"], default=str)},
    )
    with ray_session(Config()):
        started = time.monotonic()
        processor(ray.data.range(1)).take_all()
        start_up = time.monotonic() - started
        started = time.monotonic()
        # Its unit is the batch of 64 rows.
        answers = processor(ray.data.range(rows, override_num_blocks=-(-rows // 64))).take_all()
        kept = {int(row["id"]): _text(json.loads(row["response"])) for row in answers}
        return _result(started + start_up, kept, rows)


def _text(response: Any) -> str | None:
    """The completion in a stored response, None where there is none: the row is kept all the same."""
    choices = response.get("choices") if isinstance(response, dict) else None
    return choices[0]["message"]["content"] if choices else None


def main() -> None:
    """See the module."""
    side, url, in_flight, rows, per_minute = sys.argv[1:]
    if side == "ours":
        found = asyncio.run(_run_ours(url, int(in_flight), int(rows), int(per_minute)))
    elif side == "sdk":
        found = asyncio.run(_run_sdk(url, int(in_flight), int(rows)))
    else:
        found = _run_ray(url, int(rows))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
