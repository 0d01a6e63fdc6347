"""Steps as Ray jobs: submitted once, attached to when submitted again, stopped gracefully, resumed.

A job's name comes from its run, its step and what it was asked, so that the same command finds the same job.
Ray never reuses a submission id: a job that has ended gets the next attempt's number when it is submitted
again, and the step itself goes on from what is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.config.schema import Config
from raystill.config.secret import has_secret
from raystill.errors import EXIT_INTERRUPTED, ConfigError, Problem, RemoteError
from raystill.run.manifest import fingerprint_of

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_RECONNECTS, _RECONNECT_PAUSE_SECONDS = 30, 2.0
_AGENT_SECONDS, _STOP_SECONDS, _POLL_SECONDS = 60.0, 120.0, 0.5
_ATTEMPT = re.compile(r"-(\d+)$")
_TALKATIVE = (
    "ray._private.runtime_env",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
_NO_AGENT = "No available agent"
_FAILED = 1


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it; `exit_code` is the driver's own, None until it has ended by itself."""

    submission_id: str
    status: str
    entrypoint: str
    run: str
    step: str
    exit_code: int | None
    message: str
    started: float

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in ENDED

    @property
    def result(self) -> int:
        """The exit code for the caller: the driver's own; 130 for a stopped job; 1 where Ray failed it."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return EXIT_INTERRUPTED
        return self.exit_code if self.exit_code else _FAILED


def job_name(config: Config, step: str, asked: Sequence[str]) -> str:
    """The name that a run's step has on a cluster, without the attempt: equal for equal requests."""
    where = {"dir": config.run.dir, "name": config.run.name, "step": step, "asked": list(asked)}
    return f"raystill-{config.run.name}-{step}-{fingerprint_of(where)[:10]}"


def build_entrypoint(step: str, files: Sequence[Path], overrides: Sequence[str], working_dir: Path) -> str:
    """The command that a job runs. Raises ConfigError for secrets and for files that wouldn't travel."""
    root = working_dir.resolve()
    outside = [file for file in files if not file.resolve().is_relative_to(root)]
    problems = [
        Problem(f"{file} would not travel with the job", str(root), "submit from a directory that holds it")
        for file in outside
    ]
    problems += [
        Problem(
            "--set holds a secret, and a job's command is shown to everybody", "--set", "set it on the nodes"
        )
        for text in overrides
        if has_secret(text)
    ]
    if problems:
        raise ConfigError(problems[0].what, problems[0].where, problems[0].fix, problems=tuple(problems))
    command = ["python", "-m", "raystill.cli.main", step, "--config"]
    command += [file.resolve().relative_to(root).as_posix() for file in files]
    for text in overrides:
        command += ["--set", text]
    return shlex.join(command)


def require_lasting(config: Config) -> None:
    """Raises ConfigError if the run would be written into the job's temporary copy of the code."""
    if not Path(config.run.dir).expanduser().is_absolute():
        raise ConfigError(
            f"run.dir is {config.run.dir}: a job works in a temporary copy, and the run would be lost",
            where="run.dir",
            fix="--set run.dir=/a/disk/that/every/node/sees",
        )


class JobServer:
    """The job server of a cluster's head."""

    def __init__(self, address: str) -> None:
        """Connect. Raises RemoteError where nothing answers, and where the token is missing or wrong."""
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:  # they say which files travel and which connections close
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = address
        with _translated(address):
            self._client = JobSubmissionClient(address)

    def list_jobs(self) -> list[Job]:
        """Submitted jobs, oldest first."""
        with _translated(self.address):
            details = [item for item in self._client.list_jobs() if item.submission_id]
        return sorted((_describe(item) for item in details), key=lambda job: job.started)

    def find(self, wanted: str) -> Job:
        """The newest job that has this submission id, this name, or this run. Raises RemoteError."""
        jobs = self.list_jobs()
        for fits in (
            lambda job: job.submission_id == wanted,
            lambda job: _ATTEMPT.sub("", job.submission_id) == wanted,
            lambda job: job.run == wanted,
        ):
            matching = [job for job in jobs if fits(job)]
            if matching:
                return matching[-1]
        known = ", ".join(job.submission_id for job in jobs[-5:])
        raise RemoteError(
            f"there is no job {wanted}", where=self.address, fix=f"the last ones are: {known or 'none'}"
        )

    def submit(
        self, name: str, entrypoint: str, *, run: str, step: str, runtime_env: dict[str, Any]
    ) -> tuple[Job, bool]:
        """The job `name`, and whether it is new: one that is waiting or running is attached to."""
        earlier = [job for job in self.list_jobs() if _ATTEMPT.sub("", job.submission_id) == name]
        if earlier and not earlier[-1].has_ended:
            return earlier[-1], False
        submission_id = f"{name}-{len(earlier) + 1}"
        deadline = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata={"run": run, "step": step},
                )
            except (RuntimeError, OSError) as error:
                if "already exists" in str(error):  # somebody else was faster by a moment
                    return self.find(submission_id), False
                # The job server answers before the agent that starts jobs does.
                if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise _remote(self.address, error) from error
                time.sleep(_POLL_SECONDS)
            else:
                return self.find(submission_id), True

    def follow(self, job: Job, write: Callable[[str], None]) -> Job:
        """Write the job's log as it grows; returns the job as it ended. Ctrl-C leaves it running.

        Where the connection breaks, as when a tunnel falls, it is made again and goes on where it was. Raises
        RemoteError after _RECONNECTS attempts that brought nothing new.
        """
        written, attempts = 0, 0

        async def tail(skip: int) -> None:
            nonlocal written, attempts
            async for text in self._client.tail_job_logs(job.submission_id):
                fresh, skip = text[skip:], max(0, skip - len(text))
                if fresh:
                    written, attempts = written + len(fresh), 0
                    write(fresh)

        while True:
            try:
                with _translated(self.address):
                    asyncio.run(tail(written))
            except RemoteError:
                attempts += 1
                if attempts > _RECONNECTS:
                    raise
                time.sleep(_RECONNECT_PAUSE_SECONDS)
            else:
                return self.wait(job, _STOP_SECONDS, "to end after its log did")

    def read_logs(self, job: Job) -> str:
        """What the job has printed so far."""
        with _translated(self.address):
            text: str = self._client.get_job_logs(job.submission_id)
        return text

    def stop(self, job: Job) -> Job:
        """Ask a job to save and end; returns it as it ended."""
        if job.has_ended:
            return job
        with _translated(self.address):
            self._client.stop_job(job.submission_id)
        return self.wait(job, _STOP_SECONDS, "to save its work and stop")

    def wait(self, job: Job, seconds: float, what: str) -> Job:
        """The job once it has ended. Raises RemoteError after `seconds`, saying what was waited for."""
        deadline = time.monotonic() + seconds
        while True:
            now = self.find(job.submission_id)
            if now.has_ended:
                return now
            if time.monotonic() > deadline:
                raise RemoteError(
                    f"waited {seconds:.0f} s for the job {job.submission_id} {what}; it is {now.status}",
                    where=self.address,
                    fix=f"raystill logs {job.submission_id}",
                )
            time.sleep(_POLL_SECONDS)


def _describe(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        submission_id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        entrypoint=details.entrypoint,
        run=metadata.get("run", ""),
        step=metadata.get("step", ""),
        exit_code=details.driver_exit_code,
        message=(details.message or "").strip(),
        started=float(details.start_time or 0),
    )


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    import aiohttp
    import requests
    from ray.exceptions import RayError

    try:
        yield
    except (RuntimeError, OSError, requests.RequestException, aiohttp.ClientError, RayError) as error:
        raise _remote(address, error) from error


def _remote(address: str, error: Exception) -> RemoteError:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    lowered = str(error).lower()
    if "401" in lowered or "403" in lowered or "unauthenticated" in lowered or "token" in lowered:
        return RemoteError(
            "the cluster refused this machine's token",
            where=address,
            fix="export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN=... (or RAY_AUTH_TOKEN_PATH): the cluster's, "
            "which `ray get-auth-token` prints on its head",
        )
    return RemoteError(
        f"the cluster's job server can't be used: {text}",
        where=address,
        fix="check that the cluster runs, and open its dashboard here: `ray dashboard cluster/aws.yaml`",
    )
