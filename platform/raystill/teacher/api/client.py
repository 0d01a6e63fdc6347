"""One HTTP request to the endpoint: an answer, or a failure that says what to do. Never text by accident."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import aiohttp

from raystill.teacher.api.address import Address, describe_proxy
from raystill.teacher.api.outcomes import (
    Failure,
    classify_status,
    parse_retry_after,
    shorten,
)
from raystill.teacher.api.wire import ChatAnswer, Choice, decode_answer, parse_error
from raystill.teacher.engine import Usage

REQUEST_ID_PREFIX = "raystill-"
_OUR_ID = re.compile(REQUEST_ID_PREFIX + r"([0-9a-f]{32})")
_LARGEST_BODY_BYTES = 256 * 2**20
_CONNECT_SECONDS = 30.0
# Answers whose ids are remembered, to tell an answer that is delivered twice.
_REMEMBERED_IDS = 65_536


@dataclass(frozen=True)
class Answered:
    """A whole answer with one choice. `usage` is None where the endpoint sent none."""

    answer: ChatAnswer
    choice: Choice
    usage: Usage | None
    seconds: float


class ApiClient:
    """A pool of kept-alive connections to one endpoint. Belongs to the event loop that built it.

    `checks_ids`: an answer whose id has been seen with another request is a duplicate delivery.
    """

    def __init__(
        self, address: Address, key: str | None, *, timeout_s: float, connections: int, checks_ids: bool
    ) -> None:
        self._url = address.chat_url
        self._key = key
        self._proxy = describe_proxy(address)
        self._timeout_s = timeout_s
        self._checks_ids = checks_ids
        self._seen: OrderedDict[str, str] = OrderedDict()
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=60.0, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, _CONNECT_SECONDS)),
            trust_env=not address.is_local,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def send(self, key: str, body: bytes) -> Answered | Failure:
        """Ask once. `key` is the row's request key; it travels as X-Request-Id."""
        started = time.monotonic()
        # aiohttp's own limit covers connecting and every pause; this one a body that trickles in as well.
        try:
            async with asyncio.timeout(self._timeout_s):
                status, headers, raw = await self._post(key, body)
        except (TimeoutError, aiohttp.ServerTimeoutError):
            message = f"no whole answer within {self._timeout_s:g} s"
            return Failure("retry", "timeout", message, may_be_billed=True)
        except (aiohttp.ClientConnectorError, aiohttp.ClientProxyConnectionError) as error:
            return self._connect_failure(error)
        except (aiohttp.ClientError, ConnectionError, OSError, ValueError) as error:
            message = f"the connection broke: {type(error).__name__}: {self._masked(str(error))}"
            return Failure("retry", "connection", message, may_be_billed=True)
        if status != 200:
            code, message = parse_error(raw)
            wait = parse_retry_after(headers.get("Retry-After"))
            return classify_status(status, code, self._masked(message), wait)
        return self._read(key, raw, headers.get("X-Request-Id", ""), time.monotonic() - started)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def __aenter__(self) -> ApiClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _post(self, key: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        headers = {**self._headers, "X-Request-Id": f"{REQUEST_ID_PREFIX}{key}"}
        async with self._session.post(
            self._url, data=body, headers=headers, allow_redirects=False
        ) as response:
            parts: list[bytes] = []
            size = 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > _LARGEST_BODY_BYTES:
                    raise ValueError(f"the answer is larger than {_LARGEST_BODY_BYTES >> 20} MiB")
            return response.status, response.headers, b"".join(parts)

    def _connect_failure(self, error: aiohttp.ClientError) -> Failure:
        through = f" through the proxy {self._proxy}" if self._proxy else ""
        message = f"no connection{through}: {self._masked(_plain(error))}"
        cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
        if isinstance(error, aiohttp.ClientSSLError) or isinstance(cause, ssl.SSLError):
            fix = "check the machine's clock and certificates, and whether a proxy answers instead of the "
            return Failure("abort", "tls", message, fix=fix + "endpoint")
        return Failure("retry", "connection", message)

    def _read(self, key: str, raw: bytes, echoed_id: str, seconds: float) -> Answered | Failure:
        read = read_body(raw, seconds, self._masked)
        if isinstance(read, Failure):
            return read
        if stranger := self._stranger(key, read.answer, echoed_id):
            return Failure("retry", "wrong_answer", stranger, may_be_billed=True)
        return read

    def _stranger(self, key: str, answer: ChatAnswer, echoed_id: str) -> str | None:
        """Why the answer belongs to another request, or None."""
        for text in (answer.id or "", echoed_id):
            named = _OUR_ID.search(text)
            if named is not None and named.group(1) != key:
                return "the answer carries the id of another request"
        if not self._checks_ids or not answer.id:
            return None
        if self._seen.setdefault(answer.id, key) != key:
            return "the answer was delivered for another request before"
        if len(self._seen) > _REMEMBERED_IDS:
            self._seen.popitem(last=False)
        return None

    def _masked(self, text: str) -> str:
        return shorten(text.replace(self._key, "***") if self._key else text)


def _plain(error: aiohttp.ClientError) -> str:
    """What went wrong in words: aiohttp's own text shows its arguments, a proxy's password among them."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the endpoint's certificate is refused: {cause.verify_message}"
    if cause is not None:
        return f"{type(cause).__name__}: {getattr(cause, 'strerror', None) or cause}"
    return str(error)


def read_body(raw: bytes, seconds: float = 0.0, mask: Callable[[str], str] = shorten) -> Answered | Failure:
    """What a body with status 200 is: an answer, or an error in an answer's place, its message masked."""
    try:
        answer = decode_answer(raw)
    except ValueError as error:
        what = "HTML" if raw.lstrip()[:1] == b"<" else f"no chat completion ({shorten(str(error))})"
        return Failure("retry", "malformed", f"the answer is {what}", may_be_billed=True)
    if bytes(answer.error) not in (b"", b"null") and not answer.choices:
        code, message = parse_error(raw)
        status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 500
        return classify_status(status, code, mask(message), None)
    usage = usage_of(answer)
    if not answer.choices:
        return Failure("retry", "malformed", "the answer has no choices", usage=usage, may_be_billed=True)
    return Answered(answer, answer.choices[0], usage, seconds)


def usage_of(answer: ChatAnswer) -> Usage | None:
    """The answer's usage, without its cost.

    Some endpoints leave the thoughts out of completion_tokens; their total tells.
    """
    wire = answer.usage
    if wire is None:
        return None
    prompt = max(0, wire.prompt_tokens)
    completion = max(0, wire.completion_tokens, (wire.total_tokens or 0) - prompt)
    cached = (wire.prompt_tokens_details and wire.prompt_tokens_details.cached_tokens) or 0
    reasoning = (wire.completion_tokens_details and wire.completion_tokens_details.reasoning_tokens) or 0
    return Usage(prompt, completion, max(0, cached), max(0, reasoning))
