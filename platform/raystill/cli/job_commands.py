"""`raystill submit|logs|stop|resume|jobs`: steps as jobs of a Ray cluster."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raystill.cli.arguments import ConfigFiles, Debug, Json, Overrides, load_from_options
from raystill.cli.terminal import LOG, RESULTS, make_table, print_json, print_table
from raystill.errors import ConfigError

if TYPE_CHECKING:
    from raystill.cluster.jobs import Job, JobServer

StepName = Annotated[str, typer.Argument(metavar="STEP", help="A step, `run` for all of them, or `tune`.")]
JobName = Annotated[
    str,
    typer.Argument(metavar="JOB", help="A submission id, a job's name, or a run's name (its newest job)."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Job server; unset: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."),
]
RuntimeEnv = Annotated[
    Path | None, typer.Option("--runtime-env", help="Runtime environment; unset: cluster/runtime_env.yaml.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Submit and return; don't follow the log.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")]


def submit(
    step: StepName,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    address: Address = None,
    runtime_env: RuntimeEnv = None,
    no_wait: NoWait = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a step as a job of a cluster and follow its log; submitting it again attaches to it.

    The exit code is the job's own. Ctrl-C leaves the job running.
    """
    from raystill.cluster.jobs import JobServer, build_entrypoint, job_name, require_lasting
    from raystill.pipeline import parse_step

    if step not in ("run", "tune"):
        parse_step(step)
    loaded = load_from_options(config, overrides)
    require_lasting(loaded.config)
    here = Path.cwd()
    entrypoint = build_entrypoint(step, config or [], overrides or [], here)
    environment = _environment(here, runtime_env)
    server = JobServer(_address(address))
    name = job_name(loaded.config, step, shlex.split(entrypoint))
    run = loaded.config.run.name
    job, is_new = server.submit(name, entrypoint, run=run, step=step, runtime_env=environment)
    LOG.print(f"{'submitted' if is_new else 'attached to'} {job.submission_id} at {server.address}")
    _follow(server, job, no_wait=no_wait, as_json=as_json)


def resume(
    job: JobName,
    address: Address = None,
    runtime_env: RuntimeEnv = None,
    no_wait: NoWait = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Submit a job that has ended once more, with the command it had: it goes on from what is on disk."""
    from raystill.cluster.jobs import JobServer

    server = JobServer(_address(address))
    found = server.find(job)
    name = found.submission_id.rpartition("-")[0]
    environment = _environment(Path.cwd(), runtime_env)
    again, is_new = server.submit(
        name, found.entrypoint, run=found.run, step=found.step, runtime_env=environment
    )
    LOG.print(f"{'submitted' if is_new else 'still running: attached to'} {again.submission_id}")
    _follow(server, again, no_wait=no_wait, as_json=as_json)


def logs(job: JobName, address: Address = None, follow: Follow = False, debug: Debug = False) -> None:
    """Print what a job has written."""
    from raystill.cluster.jobs import JobServer

    server = JobServer(_address(address))
    found = server.find(job)
    if follow:
        _follow(server, found, no_wait=False, as_json=False)
        return
    sys.stdout.write(server.read_logs(found))


def stop(job: JobName, address: Address = None, as_json: Json = False, debug: Debug = False) -> None:
    """Let a job save its work and end; `raystill resume` or the same submit line goes on with it."""
    from raystill.cluster.jobs import JobServer

    server = JobServer(_address(address))
    found = server.find(job)
    LOG.print(f"stopping {found.submission_id} ...")
    ended = server.stop(found)
    if as_json:
        print_json(_as_json(ended))
    else:
        RESULTS.print(f"{ended.submission_id}: {ended.status}")


def jobs(address: Address = None, as_json: Json = False, debug: Debug = False) -> None:
    """List a cluster's jobs, oldest first."""
    from raystill.cluster.jobs import JobServer

    found = JobServer(_address(address)).list_jobs()
    if as_json:
        print_json({"jobs": [_as_json(job) for job in found]})
        return
    rows = [(job.submission_id, job.run, job.step, job.status, _code(job)) for job in found]
    columns = {"job": False, "run": False, "step": False, "state": False, "exit code": True}
    print_table(make_table("Jobs", columns, rows))


def _follow(server: JobServer, job: Job, *, no_wait: bool, as_json: bool) -> None:
    if not no_wait:
        stream = sys.stderr if as_json else sys.stdout

        def write(text: str) -> None:
            stream.write(text)
            stream.flush()

        job = server.follow(job, write)
        if job.status == "FAILED" and job.exit_code is None:
            LOG.print(f"the job failed before its command began: {job.message}", markup=False)
    if as_json:
        print_json(_as_json(job))
    if not no_wait and job.result:
        raise typer.Exit(job.result)


def _environment(working_dir: Path, given: Path | None) -> dict[str, Any]:
    from raystill.cluster.upload import DEFAULT_RUNTIME_ENV, MANY_BYTES, load_runtime_env, measure_upload

    path = given or DEFAULT_RUNTIME_ENV
    if given is None and not path.exists():
        raise ConfigError(
            "there is no cluster/runtime_env.yaml here",
            where=str(working_dir),
            fix="submit from the repository's root, or name one by --runtime-env",
        )
    environment = load_runtime_env(path)
    upload = measure_upload(working_dir, environment.get("excludes") or ())
    if upload.size_bytes > MANY_BYTES:
        LOG.print(f"warning: the job carries {upload.describe()}", style="yellow", markup=False)
    return environment | {"working_dir": str(working_dir)}


def _address(given: str | None) -> str:
    from raystill.cluster.jobs import DEFAULT_ADDRESS

    return given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS


def _as_json(job: Job) -> dict[str, Any]:
    return {
        "submission_id": job.submission_id,
        "run": job.run,
        "step": job.step,
        "status": job.status,
        "exit_code": job.exit_code,
        "result": job.result if job.has_ended else None,
    }


def _code(job: Job) -> str:
    return str(job.result) if job.has_ended else ""
