"""The scripted endpoint's Files and Batch API: upload, create, list, cancel, partial results, expiry."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from raystill.testing.scripted_chat import Json, Refused, body_hash

_TICK_SECONDS = 0.02
_ENDED = {"completed", "failed", "expired", "cancelled"}
_LIST_LIMIT = 100


@dataclass(frozen=True)
class BatchScript:
    """How batches go. Rows and bytes over the limits fail the batch or the upload, as providers do.

    `expire_after`: the n-th batch (from 0) expires after that many rows; `failing`: numbers of batches that
    fail as a whole; `flaky`: the share of rows that get a 500 the first time they are asked for. A batch that
    would take the rows in progress above `max_enqueued_rows` fails. Results come in random order,
    `duplicates` of them twice.
    """

    rows_per_second: float = 1e9
    max_rows: int = 50_000
    max_bytes: int = 200_000_000
    expire_after: dict[int, int] = field(default_factory=dict)
    failing: frozenset[int] = frozenset()
    flaky: float = 0.0
    duplicates: float = 0.0
    max_enqueued_rows: int = 1_000_000_000


@dataclass
class _Batch:
    facts: Json
    rows: list[Json]
    number: int
    results: list[Json] = field(default_factory=list)
    errors: list[Json] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class BatchDesk:
    """Uploaded files and batches. `complete` answers one body or raises Refused."""

    def __init__(self, script: BatchScript, complete: Callable[[Json], Json], seed: int) -> None:
        self._script = script
        self._rows_per_second = script.rows_per_second
        self._complete = complete
        self._noise = random.Random(seed)
        self._files: dict[str, tuple[Json, bytes]] = {}
        self._batches: dict[str, _Batch] = {}
        self._asked: Counter[str] = Counter()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the Files and Batch API."""
        router.add_post("/v1/files", self._upload)
        router.add_get("/v1/files/{id}", self._file)
        router.add_delete("/v1/files/{id}", self._delete_file)
        router.add_get("/v1/files/{id}/content", self._content)
        router.add_post("/v1/batches", self._create)
        router.add_get("/v1/batches", self._list)
        router.add_get("/v1/batches/{id}", self._retrieve)
        router.add_post("/v1/batches/{id}/cancel", self._cancel)

    def hurry(self) -> None:
        """Answer everything at once from now on: for tests that need a slow provider only for a while."""
        self._rows_per_second = BatchScript.rows_per_second

    async def stop(self, app: web.Application) -> None:
        """End the batches that still run."""
        for batch in self._batches.values():
            if batch.task is not None:
                batch.task.cancel()

    def as_json(self) -> Json:
        """Batches, files, and how often rows were asked for, by hash of their body."""
        asked = dict(self._asked)
        return {
            "batches": [batch.facts for batch in self._batches.values()],
            "files": len(self._files),
            "batched_by_body": asked,
            "batched_rows": sum(asked.values()),
        }

    async def _upload(self, request: web.Request) -> web.Response:
        data, name, purpose = b"", "batch.jsonl", ""
        async for part in await request.multipart():
            content = bytes(await part.read(decode=True))  # type: ignore[union-attr]
            if part.name == "file":  # type: ignore[union-attr]
                data, name = content, part.filename or name  # type: ignore[union-attr]
            elif part.name == "purpose":  # type: ignore[union-attr]
                purpose = content.decode()
        if purpose != "batch":
            raise Refused(400, "invalid_purpose", f"purpose {purpose!r} is not scripted")
        if len(data) > self._script.max_bytes:
            raise Refused(413, "file_too_large", f"the file has more than {self._script.max_bytes} bytes")
        return web.json_response(self._add_file(data, name, "batch"))

    def _add_file(self, data: bytes, name: str, purpose: str) -> Json:
        facts = {
            "id": f"file-{len(self._files):06d}",
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[str(facts["id"])] = (facts, data)
        return facts

    def _get_file(self, request: web.Request) -> tuple[Json, bytes]:
        try:
            return self._files[request.match_info["id"]]
        except KeyError as error:
            raise Refused(
                404, "file_not_found", f"No such File object: {request.match_info['id']}"
            ) from error

    async def _file(self, request: web.Request) -> web.Response:
        return web.json_response(self._get_file(request)[0])

    async def _delete_file(self, request: web.Request) -> web.Response:
        facts, _ = self._get_file(request)
        del self._files[str(facts["id"])]
        return web.json_response({"id": facts["id"], "object": "file", "deleted": True})

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self._get_file(request)[1], content_type="application/octet-stream")

    async def _create(self, request: web.Request) -> web.Response:
        asked: Json = await request.json()
        if asked.get("input_file_id") not in self._files:
            raise Refused(400, "file_not_found", f"no file {asked.get('input_file_id')}")
        number = len(self._batches)
        facts: Json = {
            "id": f"batch_{number:06d}",
            "object": "batch",
            "endpoint": asked.get("endpoint"),
            "errors": None,
            "input_file_id": asked["input_file_id"],
            "completion_window": asked.get("completion_window"),
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "expires_at": int(time.time()) + 86_400,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": asked.get("metadata"),
        }
        batch = _Batch(facts, [], number)
        self._batches[str(facts["id"])] = batch
        batch.task = asyncio.create_task(self._run(batch))
        return web.json_response(facts)

    async def _list(self, request: web.Request) -> web.Response:
        newest_first = [batch.facts for batch in reversed(self._batches.values())]
        after = request.query.get("after")
        if after:
            ids = [facts["id"] for facts in newest_first]
            newest_first = newest_first[ids.index(after) + 1 :] if after in ids else []
        limit = min(int(request.query.get("limit", "20")), _LIST_LIMIT)
        page = newest_first[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        has_more = len(newest_first) > limit
        return web.json_response({"object": "list", "data": page, "has_more": has_more, **ends})

    def _get_batch(self, request: web.Request) -> _Batch:
        try:
            return self._batches[request.match_info["id"]]
        except KeyError as error:
            raise Refused(404, "batch_not_found", f"No batch {request.match_info['id']}") from error

    async def _retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(self._get_batch(request).facts)

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._get_batch(request)
        if batch.facts["status"] not in _ENDED:
            batch.facts["status"] = "cancelling"
        return web.json_response(batch.facts)

    async def _run(self, batch: _Batch) -> None:
        try:
            self._validate(batch)
        except Refused as refused:
            error = refused.body["error"]
            listed = {"code": error["code"], "message": error["message"], "param": None, "line": None}
            batch.facts |= {"status": "failed", "errors": {"object": "list", "data": [listed]}}
            return
        limit = self._script.expire_after.get(batch.number, len(batch.rows))
        batch.facts["status"] = "in_progress"
        started = time.monotonic()
        done = 0
        while done < min(limit, len(batch.rows)) and batch.facts["status"] == "in_progress":
            await asyncio.sleep(_TICK_SECONDS)
            allowed = int((time.monotonic() - started) * self._rows_per_second)
            for row in batch.rows[done : min(limit, allowed)]:
                self._answer_row(batch, row)
                done += 1
        left = batch.rows[done:]
        is_cancelled = batch.facts["status"] == "cancelling"
        code = "batch_cancelled" if is_cancelled else "batch_expired"
        for row in left:
            batch.errors.append(_line(batch, row, None, {"code": code, "message": "not executed in time"}))
        self._publish(batch, "cancelled" if is_cancelled else "expired" if left else "completed")

    def _validate(self, batch: _Batch) -> None:
        if batch.number in self._script.failing:
            raise Refused(500, "internal_error", "the batch was lost", "server_error")
        lines = self._files[batch.facts["input_file_id"]][1].splitlines()
        if len(lines) > self._script.max_rows:
            raise Refused(400, "too_many_requests", f"more than {self._script.max_rows} requests")
        enqueued = sum(len(b.rows) for b in self._batches.values() if b.facts["status"] not in _ENDED)
        if enqueued + len(lines) > self._script.max_enqueued_rows:
            raise Refused(429, "token_limit_exceeded", "Enqueued token limit reached")
        batch.rows = [json.loads(line) for line in lines if line.strip()]
        ids = [row["custom_id"] for row in batch.rows]
        if len(set(ids)) != len(ids):
            raise Refused(400, "duplicate_custom_id", "a custom_id occurs twice")
        batch.facts["request_counts"]["total"] = len(batch.rows)

    def _answer_row(self, batch: _Batch, row: Json) -> None:
        name = body_hash(row["body"])
        self._asked[name] += 1
        counts = batch.facts["request_counts"]
        try:
            if self._asked[name] == 1 and self._noise.random() < self._script.flaky:
                raise Refused(500, "server_error", "the model stumbled", "server_error")
            answer = self._complete(row["body"])
        except Refused as refused:
            counts["failed"] += 1
            response = {"status_code": refused.status, "request_id": f"req-{name}", "body": refused.body}
            batch.errors.append(_line(batch, row, response, None))
            return
        counts["completed"] += 1
        response = {"status_code": 200, "request_id": f"req-{name}", "body": answer}
        batch.results.append(_line(batch, row, response, None))
        if self._noise.random() < self._script.duplicates:
            batch.results.append(batch.results[-1])

    def _publish(self, batch: _Batch, status: str) -> None:
        self._noise.shuffle(batch.results)
        for field_name, lines in (("output_file_id", batch.results), ("error_file_id", batch.errors)):
            if lines:
                data = "".join(json.dumps(line) + "\n" for line in lines).encode()
                name = f"{batch.facts['id']}_{field_name[:6]}.jsonl"
                batch.facts[field_name] = self._add_file(data, name, "batch_output")["id"]
        batch.facts["status"] = status


def _line(batch: _Batch, row: Json, response: Any, error: Any) -> Json:
    number = len(batch.results) + len(batch.errors)
    return {
        "id": f"batch_req_{batch.number}_{number}",
        "custom_id": row["custom_id"],
        "response": response,
        "error": error,
    }
