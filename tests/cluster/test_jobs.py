"""Following a job's log over a connection that breaks. Everything else about jobs is in tests/jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from raystill.cluster import jobs
from raystill.cluster.jobs import Job, JobServer
from raystill.errors import RemoteError

LINES = ["[1/2] prepare\n", "      done\n", "[2/2] generate\n", "      done\n"]
JOB = Job("raystill-demo-run-1", "RUNNING", "", "demo", "run", None, "", 0.0)


class Client:
    """A job server whose connections end early: each after as many lines as `breaks` says."""

    def __init__(self, *breaks: int) -> None:
        self.breaks = list(breaks)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        left = self.breaks.pop(0) if self.breaks else len(LINES)
        for line in LINES[:left]:
            yield line
        if left < len(LINES):
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def list_jobs(self) -> list[Any]:
        return [
            SimpleNamespace(
                submission_id=JOB.submission_id, status="SUCCEEDED", entrypoint="", metadata={},
                driver_exit_code=0, message="", start_time=1,
            )
        ]  # fmt: skip


def server(monkeypatch: pytest.MonkeyPatch, *breaks: int) -> JobServer:
    monkeypatch.setattr(jobs, "_RECONNECT_PAUSE_SECONDS", 0.0)
    found = JobServer.__new__(JobServer)
    found.address, found._client = "http://head:8265", Client(*breaks)
    return found


@pytest.mark.parametrize("breaks", [(), (3,), (0, 1, 1, 3)])
def test_a_broken_connection_loses_and_repeats_no_line(
    monkeypatch: pytest.MonkeyPatch, breaks: tuple[int, ...]
) -> None:
    written: list[str] = []
    ended = server(monkeypatch, *breaks).follow(JOB, written.append)
    assert "".join(written) == "".join(LINES) and ended.status == "SUCCEEDED"


def test_a_server_that_stays_away_is_not_asked_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    with pytest.raises(RemoteError, match="closed unexpectedly"):
        server(monkeypatch, 2, *[0] * (jobs._RECONNECTS + 1)).follow(JOB, written.append)
    assert written == LINES[:2]
