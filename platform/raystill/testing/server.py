"""Small aiohttp servers for tests and rehearsals: in a thread, in a process of their own, or in front.

Everything listens on loopback only.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from raystill.errors import EnvironmentFault

_HOST = "127.0.0.1"
_START_SECONDS = 120.0
_SHUTDOWN_SECONDS = 0.2
MAX_BODY_BYTES = 1 << 30


class ServerThread:
    """Serves the application that `build` returns from an event loop in a thread; a context manager.

    `build` runs inside that loop. With `port` 0 the system picks one, see `url`.
    """

    def __init__(
        self, build: Callable[[], web.Application], *, port: int = 0, cancels_handlers: bool = False
    ) -> None:
        self._build = build
        self._port = port
        self._cancels_handlers = cancels_handlers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="testing-server", daemon=True)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`, once it serves."""
        return f"http://{_HOST}:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on, once it serves."""
        return self._port

    def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_START_SECONDS)

    def stop(self) -> None:
        """Close every connection and end the thread."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)
        self._loop.close()

    def __enter__(self) -> ServerThread:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _start(self) -> None:
        self._runner, self._port = await _listen(self._build(), self._port, self._cancels_handlers)

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


class ServedInThread:
    """Something that a thread of this process serves; a context manager, plain or async.

    Subclasses set `_server`.
    """

    _server: ServerThread

    @property
    def url(self) -> str:
        """Its address, without /v1."""
        return self._server.url

    @property
    def base_url(self) -> str:
        """`url` with /v1: what `teacher.closed.endpoint.base_url` takes."""
        return f"{self._server.url}/v1"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._server.start)
        return self

    async def __aexit__(self, *unused: object) -> None:
        await asyncio.to_thread(self._server.stop)


class ServerProcess:
    """`python -m MODULE ARGUMENTS --port PORT` as a child that dies by `kill`; a context manager.

    The module must serve through `serve_forever`. Its port survives a kill, so that `start` can be called
    again and clients find the same address.
    """

    def __init__(self, module: str, arguments: Sequence[str] = (), *, port: int = 0) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """The child's process id. Raises EnvironmentFault where it does not run."""
        if self._process is None:
            raise EnvironmentFault("the server does not run", where=" ".join(self._command))
        return self._process.pid

    def start(self) -> None:
        """Start the child and wait until it listens. Raises EnvironmentFault where it ends instead."""
        self._process = subprocess.Popen(
            [*self._command, "--port", str(self._port)],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise EnvironmentFault(f"the server ended with {code}", where=" ".join(self._command))
        self.url = json.loads(line)["url"]
        self._port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def serve_forever(build: Callable[[], web.Application], port: int, *, cancels_handlers: bool = False) -> None:
    """Serve until the process is ended. The first line on stdout is JSON: {"url": ...}."""
    asyncio.run(_serve_forever(build, port, cancels_handlers))


async def _serve_forever(build: Callable[[], web.Application], port: int, cancels_handlers: bool) -> None:
    runner, port = await _listen(build(), port, cancels_handlers)
    sys.stdout.write(json.dumps({"url": f"http://{_HOST}:{port}"}) + "\n")
    sys.stdout.flush()
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _listen(app: web.Application, port: int, cancels_handlers: bool) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=cancels_handlers, shutdown_timeout=_SHUTDOWN_SECONDS
    )
    await runner.setup()
    site = web.TCPSite(runner, _HOST, port, reuse_address=True, backlog=2048)
    await site.start()
    addresses: list[Any] = runner.addresses
    return runner, int(addresses[0][1])
