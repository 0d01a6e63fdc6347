"""A reverse proxy that goes wrong on purpose, in front of any HTTP upstream.

In a thread for tests (`FaultProxy`, also by `async with`), or as
`python -m raystill.testing.fault_proxy --upstream http://127.0.0.1:8000 --fault 429=1:0.02 --fault hang@7`.
Faults meet the requests whose path starts with one of `paths`; /__stats tells what was done to them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp
from aiohttp import web

from raystill.testing.fault_bodies import error_body, mangled, retry_after
from raystill.testing.faults import NOT_FORWARDED, Fault, FaultPlan, parse_fault
from raystill.testing.server import MAX_BODY_BYTES, ServedInThread, ServerThread, serve_forever

DEFAULT_PATHS = ("/v1/chat/completions",)
_HOP_BY_HOP = frozenset(
    {"connection", "content-encoding", "content-length", "host", "keep-alive", "transfer-encoding"}
)
_HANG_SECONDS = 3600.0
_REORDER_SECONDS, _HEAD_START_SECONDS = 0.5, 0.2


class FaultyUpstream:
    """The proxy's state; `build` makes the application that serves it."""

    def __init__(
        self,
        upstream: str,
        faults: Sequence[Fault] = (),
        *,
        seed: int = 0,
        paths: Sequence[str] = DEFAULT_PATHS,
    ) -> None:
        self._upstream = upstream.rstrip("/")
        self._plan = FaultPlan(faults, seed)
        self._paths = tuple(paths)
        self._number = 0
        self._done: Counter[str] = Counter()
        self._arrivals = itertools.count(1)
        self._newest_answered = 0
        self._answered = asyncio.Event()

    def build(self) -> web.Application:
        """The application. Call it inside the event loop that serves it."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/__stats", self._stats)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.cleanup_ctx.append(self._open_session)
        return app

    @property
    def stats(self) -> dict[str, Any]:
        """`requests` that could be hit, `forwarded` ones, and how many met each fault."""
        done = {name: count for name, count in self._done.items() if name != "forwarded"}
        return {"requests": self._number, "forwarded": self._done["forwarded"], "faults": done}

    async def _open_session(self, app: web.Application) -> Any:
        timeout = aiohttp.ClientTimeout(total=None, connect=10.0)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=True)
        yield
        await self._session.close()

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        fault, arrival = None, next(self._arrivals)
        if request.path.startswith(self._paths):
            self._number += 1
            fault = self._plan.of_request(self._number)
        body = await request.read()
        if fault is None:
            return await self._pass_on(request, body, arrival)
        self._done[fault.kind] += 1
        if fault.kind in NOT_FORWARDED:
            return await self._refuse(request, fault)
        return await self._spoil(request, body, fault, arrival)

    async def _pass_on(self, request: web.Request, body: bytes, arrival: int) -> web.Response:
        """Answer a request, and let go of those before it once the answer is on its way."""
        response = await self._forward(request, body)
        with contextlib.suppress(ConnectionResetError):  # the client has left
            await response.prepare(request)
            await response.write_eof()
        self._newest_answered = max(self._newest_answered, arrival)
        self._answered.set()
        self._answered = asyncio.Event()
        return response

    async def _refuse(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.kind == "reset":
            return _reset(request)
        if fault.kind == "hang":
            await asyncio.sleep(_HANG_SECONDS)
        status = 504 if fault.kind == "hang" else int(fault.kind)
        return web.Response(
            body=error_body(str(status)),
            status=status,
            headers=retry_after(fault.argument),
            content_type="application/json",
        )

    async def _spoil(
        self, request: web.Request, body: bytes, fault: Fault, arrival: int
    ) -> web.StreamResponse:
        if fault.kind == "latency":
            await asyncio.sleep(float(fault.argument or 1.0))
        if fault.kind == "duplicate" and request.method == "POST":
            await self._forward(request, body)
        response = await self._forward(request, body)
        content = response.body if isinstance(response.body, bytes) else b""
        if fault.kind == "reset_after":
            return _reset(request)
        if fault.kind == "half_body":
            return await _send_half(request, response, content)
        if fault.kind == "slow":
            return await _send_slowly(request, response, content, float(fault.argument or 0.2))
        if fault.kind == "reorder":
            await self._let_another_pass(arrival, float(fault.argument or _REORDER_SECONDS))
        changed = mangled(fault.kind, content)
        if changed is not None:
            response.body = changed
            if fault.kind == "html":
                response.content_type = "text/html"
        return response

    async def _let_another_pass(self, arrival: int, seconds: float) -> None:
        """Hold an answer back until a later request has got its own, or for so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._newest_answered <= arrival:
                    await self._answered.wait()
                await asyncio.sleep(_HEAD_START_SECONDS)  # the later answer is read first, too

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        self._done["forwarded"] += 1
        address = f"{self._upstream}{request.path_qs}"
        try:
            async with self._session.request(
                request.method, address, data=body, headers=headers, allow_redirects=False
            ) as answer:
                content = await answer.read()
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
                return web.Response(body=content, status=answer.status, headers=kept)
        except aiohttp.ClientError:
            return web.Response(body=error_body("502"), status=502, content_type="application/json")


class FaultProxy(ServedInThread, FaultyUpstream):
    """The proxy in a thread of this process; a context manager, plain or async."""

    def __init__(
        self, upstream: str, faults: Sequence[Fault | str] = (), *, port: int = 0, **settings: Any
    ) -> None:
        """`faults` as `Fault` or as text for `parse_fault`. Raises ConfigError for one that is none."""
        parsed = [parse_fault(fault) if isinstance(fault, str) else fault for fault in faults]
        super().__init__(upstream, parsed, **settings)
        self._server = ServerThread(self.build, port=port, cancels_handlers=True)


def _reset(request: web.Request) -> web.StreamResponse:
    """End the connection with a TCP reset."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


async def _send_half(request: web.Request, response: web.Response, content: bytes) -> web.StreamResponse:
    half = web.StreamResponse(status=response.status, headers={"Content-Type": response.content_type})
    half.content_length = len(content)
    await half.prepare(request)
    await half.write(content[: len(content) // 2])
    if request.transport is not None:
        request.transport.close()
    return half


async def _send_slowly(
    request: web.Request, response: web.Response, content: bytes, seconds: float
) -> web.StreamResponse:
    """Slow loris: one byte at a time, never quite finished."""
    slow = web.StreamResponse(status=response.status, headers={"Content-Type": response.content_type})
    slow.content_length = len(content)
    await slow.prepare(request)
    for at in range(len(content)):
        await slow.write(content[at : at + 1])
        await asyncio.sleep(seconds)
    return slow


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m raystill.testing.fault_proxy", description=__doc__)
    parser.add_argument("--upstream", required=True, help="address of the server behind, without /v1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fault", action="append", default=[], help="KIND[=ARGUMENT][:PROBABILITY][@NUMBER,...]; repeatable"
    )
    parser.add_argument("--path", action="append", default=[], help="path prefix to meet; repeatable")
    arguments = parser.parse_args()
    upstream = FaultyUpstream(
        arguments.upstream,
        [parse_fault(text) for text in arguments.fault],
        seed=arguments.seed,
        paths=arguments.path or DEFAULT_PATHS,
    )
    serve_forever(upstream.build, arguments.port, cancels_handlers=True)


if __name__ == "__main__":
    main()
