"""The provider's Files and Batch API over HTTP, as far as raystill needs it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import msgspec

from raystill.errors import RemoteError
from raystill.teacher.api.address import Address
from raystill.teacher.api.outcomes import (
    Failure,
    abort_error,
    backoff_seconds,
    classify_status,
    parse_retry_after,
    shorten,
)
from raystill.teacher.api.wire import parse_error

CHAT_PATH = "/v1/chat/completions"
METADATA_NAME = "raystill_batch"
_WINDOW = "24h"
_PAGE = 100
_CHUNK_BYTES = 1 << 20
# A batch is looked for among those that are at most so much older than its record: clocks differ.
_CLOCK_SECONDS = 86_400.0


Result = TypeVar("Result")


class BatchErrors(msgspec.Struct):
    """Why a batch failed as a whole."""

    data: list[dict[str, Any]] | None = None


class BatchFacts(msgspec.Struct):
    """A batch as the provider describes it."""

    id: str
    status: str
    created_at: float = 0.0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: BatchErrors | None = None
    metadata: dict[str, str] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether no row of it will be answered any more."""
        return self.status in ("completed", "failed", "expired", "cancelled")

    @property
    def error(self) -> tuple[str, str]:
        """(code, message) of its first error, empty where it has none."""
        first = (self.errors.data or [{}])[0] if self.errors else {}
        return str(first.get("code") or ""), shorten(str(first.get("message") or ""))


class _FileFacts(msgspec.Struct):
    id: str


class _Page(msgspec.Struct):
    data: list[BatchFacts]
    has_more: bool = False


class _Refusal(Exception):  # noqa: N818 (an answer, not a defect)
    """The provider answered with another status than 200."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class BatchEndpoint:
    """A client of one provider. Belongs to the event loop that built it.

    Every call is tried `max_attempts` times with jittered waits; each try has `timeout_s` seconds between
    two pieces of data.
    """

    def __init__(self, address: Address, key: str | None, *, timeout_s: float, max_attempts: int) -> None:
        self._base_url = address.base_url
        self._key = key
        self._max_attempts = max_attempts
        self._noise = random.Random()
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, connect=30.0, sock_read=timeout_s),
            headers={"Authorization": f"Bearer {key}"} if key else None,
            trust_env=not address.is_local,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aenter__(self) -> BatchEndpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def upload(self, requests: Path) -> str:
        """Upload a JSONL file; returns its id. A file that is uploaded twice costs nothing."""

        async def send() -> str:
            with requests.open("rb") as stream:
                form = aiohttp.FormData({"purpose": "batch"})
                form.add_field("file", stream, filename=requests.name, content_type="application/jsonl")
                return msgspec.json.decode(await self._once("POST", "/files", data=form), type=_FileFacts).id

        return await self._try_often(send, "upload requests")

    async def create(self, input_file_id: str, name: str, created_at: float) -> BatchFacts:
        """Create the batch `name`, once: after a try whose fate is unknown, it is looked for first.

        `created_at` is its record's time. Raises RemoteError where its fate can't be found out.
        """
        body = {
            "input_file_id": input_file_id,
            "endpoint": CHAT_PATH,
            "completion_window": _WINDOW,
            "metadata": {METADATA_NAME: name},
        }
        is_unclear = False

        async def send() -> BatchFacts:
            nonlocal is_unclear
            if is_unclear and (found := await self.find(name, created_at)) is not None:
                return found
            is_unclear = True
            headers = {"Idempotency-Key": name}
            raw = await self._once("POST", "/batches", data=json.dumps(body), headers=headers)
            return msgspec.json.decode(raw, type=BatchFacts)

        return await self._try_often(send, f"create the batch {name}")

    async def find(self, name: str, created_at: float) -> BatchFacts | None:
        """The batch whose metadata holds `name`, or None where the provider has none."""
        after = ""
        while True:
            path = f"/batches?limit={_PAGE}" + (f"&after={after}" if after else "")
            page = await self._get(path, "list batches", _Page)
            for facts in page.data:
                if (facts.metadata or {}).get(METADATA_NAME) == name:
                    return facts
            oldest = page.data[-1] if page.data else None
            if oldest is None or not page.has_more or 0 < oldest.created_at < created_at - _CLOCK_SECONDS:
                return None
            after = oldest.id

    async def retrieve(self, batch_id: str) -> BatchFacts:
        """How far a batch has got."""
        return await self._get(f"/batches/{batch_id}", f"ask for the batch {batch_id}", BatchFacts)

    async def download(self, file_id: str, target: Path) -> None:
        """Write a result file to `target`."""

        async def send() -> None:
            with target.open("wb") as stream:
                await self._once("GET", f"/files/{file_id}/content", into=stream)

        await self._try_often(send, f"download the results {file_id}")

    async def _get(self, path: str, what: str, kind: type[Result]) -> Result:
        async def send() -> Result:
            return msgspec.json.decode(await self._once("GET", path), type=kind)

        return await self._try_often(send, what)

    async def _once(self, method: str, path: str, **arguments: Any) -> bytes:
        """The body of an answer with status 200, or nothing where it goes `into` a file. Raises _Refusal."""
        headers, into = arguments.pop("headers", {}), arguments.pop("into", None)
        if isinstance(arguments.get("data"), str):
            headers = {**headers, "Content-Type": "application/json"}
        address = self._base_url + path
        async with self._session.request(
            method, address, headers=headers, allow_redirects=False, **arguments
        ) as response:
            if response.status == 200 and into is not None:
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    into.write(chunk)
                return b""
            raw = await response.read()
            if response.status == 200:
                return raw
            code, message = parse_error(raw)
            wait = parse_retry_after(response.headers.get("Retry-After"))
            raise _Refusal(classify_status(response.status, code, self._masked(message), wait))

    async def _try_often(self, send: Callable[[], Awaitable[Result]], what: str) -> Result:
        """Raises RemoteError for a refusal that will stay, and after the last try."""
        for attempt in range(1, self._max_attempts + 1):
            try:
                return await send()
            except _Refusal as refusal:
                failure = refusal.failure
            except msgspec.MsgspecError as error:
                failure = Failure("retry", "malformed", f"not the answer expected: {shorten(str(error))}")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                text = self._masked(f"{type(error).__name__}: {error}")
                failure = Failure("retry", "connection", text)
            if failure.code in ("http_404", "http_405"):
                raise RemoteError(
                    f"the endpoint knows nothing of it, asked to {what}: {failure.message}",
                    where=self._base_url,
                    fix="use the key of the account that created the batch; for an endpoint without a Batch "
                    "API, set teacher.closed.endpoint.mode: online",
                )
            if failure.action == "abort":
                raise abort_error(failure, f"{self._base_url}, to {what}")
            if failure.action == "reject" or attempt == self._max_attempts:
                break
            await asyncio.sleep(backoff_seconds(attempt, failure.retry_after, self._noise))
        raise RemoteError(
            f"the endpoint did not {what}: {failure.message}",
            where=self._base_url,
            fix="run again: nothing that was paid for is lost, and nothing is asked for twice",
        )

    def _masked(self, text: str) -> str:
        return shorten(text.replace(self._key, "***") if self._key else text)
