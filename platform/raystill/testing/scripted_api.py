"""A scripted OpenAI-compatible endpoint: deterministic answers, counted requests, chosen latency.

In a thread for tests (`ScriptedApi`), or as `python -m raystill.testing.scripted_api --port 8000`. Serves
/v1/models, /v1/chat/completions, /v1/files and /v1/batches; /__stats tells what it has counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from raystill.errors import ConfigError
from raystill.testing.fault_bodies import error_body, retry_after
from raystill.testing.faults import Fault, FaultPlan, parse_fault
from raystill.testing.scripted_batches import BatchDesk, BatchScript
from raystill.testing.scripted_chat import (
    Capabilities,
    Counts,
    Json,
    Latency,
    Refused,
    body_hash,
    chat_completion,
)
from raystill.testing.server import MAX_BODY_BYTES, ServedInThread, ServerThread, serve_forever


class ScriptedEndpoint:
    """The endpoint's state and its routes; `build` makes the application that serves them."""

    def __init__(
        self,
        *,
        capabilities: Capabilities | None = None,
        latency: Latency | None = None,
        batches: BatchScript | None = None,
        faults: Sequence[Fault | str] = (),
        seed: int = 0,
    ) -> None:
        """`faults` are error statuses alone; `FaultProxy` knows every other one.

        Raises ConfigError for a fault that is none, or no status.
        """
        parsed = [parse_fault(fault) if isinstance(fault, str) else fault for fault in faults]
        if unfit := [fault.kind for fault in parsed if not fault.kind.isdigit()]:
            raise ConfigError(
                f"the endpoint itself can't do {unfit[0]}",
                "faults",
                "put raystill.testing.fault_proxy before it",
            )
        self._plan = FaultPlan(parsed, seed)
        self.can = capabilities or Capabilities()
        self.counts = Counts()
        self._latency = latency or Latency()
        self._noise = random.Random(seed)
        self.desk = BatchDesk(batches or BatchScript(), self.complete, seed)

    def build(self) -> web.Application:
        """The application. Call it inside the event loop that serves it."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/__stats", self._stats)
        self.desk.add_routes(app.router)
        app.on_cleanup.append(self.desk.stop)
        return app

    def complete(self, body: Json) -> Json:
        """Answer and bill one body. Raises Refused."""
        try:
            answer = chat_completion(body, self.can, self.counts.answered)
        except Refused:
            self.counts.refused += 1
            raise
        self.counts.answered += 1
        self.counts.prompt_tokens += answer["usage"]["prompt_tokens"]
        self.counts.completion_tokens += answer["usage"]["completion_tokens"]
        return answer

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            given = request.headers.get("Authorization")
            wanted = f"Bearer {self.can.api_key}"
            if self.can.api_key and given != wanted and request.path != "/__stats":
                raise Refused(401, "invalid_api_key", "Incorrect API key provided")
            response: web.StreamResponse = await handler(request)
            return response
        except Refused as refused:
            return web.json_response(refused.body, status=refused.status)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self.can.model, "object": "model", "created": 1_700_000_000, "owned_by": "raystill"}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.Response:
        try:
            body: Json = json.loads(await request.read())
        except ValueError as error:
            raise Refused(400, "invalid_json", "the body is not JSON") from error
        counts = self.counts
        counts.requests += 1
        counts.by_body[body_hash(body)] += 1
        counts.in_flight += 1
        counts.max_in_flight = max(counts.max_in_flight, counts.in_flight)
        try:
            fault = self._plan.of_request(counts.requests)
            if fault is not None:
                counts.refused += 1
                headers = retry_after(fault.argument)
                refusal = json.loads(error_body(fault.kind))
                return web.json_response(refusal, status=int(fault.kind), headers=headers)
            await asyncio.sleep(self._latency.draw(self._noise))
            return web.json_response(self.complete(body))
        finally:
            counts.in_flight -= 1

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response({**self.counts.as_json(), **self.desk.as_json()})


class ScriptedApi(ServedInThread, ScriptedEndpoint):
    """The endpoint in a thread of this process; a context manager. `base_url` ends with /v1."""

    def __init__(self, *, port: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self._server = ServerThread(self.build, port=port)


def _endpoint(arguments: argparse.Namespace) -> ScriptedEndpoint:
    median, sigma, low, high = (float(number) for number in arguments.latency.split(","))
    return ScriptedEndpoint(
        capabilities=Capabilities(
            model=arguments.model,
            max_top_logprobs=arguments.max_top_logprobs,
            reasoning_tokens=arguments.reasoning_tokens,
        ),
        latency=Latency(median, sigma, low, high),
        faults=arguments.fault,
        seed=arguments.seed,
    )


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m raystill.testing.scripted_api", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0: any free one, printed")
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--latency", default="0,0,0,60", help="seconds: MEDIAN,SIGMA,LOW,HIGH")
    parser.add_argument("--max-top-logprobs", type=int, default=20)
    parser.add_argument("--reasoning-tokens", type=int, default=0)
    parser.add_argument("--fault", action="append", default=[], help="STATUS[=RETRY_AFTER][:PROBABILITY]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    serve_forever(_endpoint(arguments).build, arguments.port)


if __name__ == "__main__":
    main()
