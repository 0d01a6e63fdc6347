"""Starting and joining Ray, with the rules that hold for every run.

A local Ray has no dashboard, token authentication, no usage reports, and a short directory of its own that
goes away with it. A cluster is joined, never started or stopped here.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from raystill.cluster.ray_watch import watch_ray
from raystill.config.schema import Config
from raystill.errors import EnvironmentFault, RemoteError
from raystill.run.abort import abort
from raystill.run.paths import RunPaths

_PROBE_SECONDS = 10.0
_JOIN_SECONDS = 60.0
_LEAVE_SECONDS, _LEAVE_PAUSE_SECONDS = 10.0, 0.05
# Unix sockets allow 107 bytes; Ray appends about 65 to its directory.
_LONGEST_TEMP_DIR = 40
_LONGEST_REASON = 400
_SMALLEST_STORE_BYTES = 80 * 2**20
_LARGEST_STORE_BYTES = 2**30
_SMALLEST_NUM_CPUS = 4
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Ray for the body: the cluster at `cluster.address` or RAY_ADDRESS, else one on this machine.

    A Ray that this process has joined already is used as it is and left running. Raises RemoteError for a
    cluster that doesn't answer within seconds, EnvironmentFault where a local Ray can't start. If the local
    Ray dies, the process ends with a RemoteError's message and exit code.
    """
    address = config.cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    _export_environment(is_local=address == "local")
    import ray

    if ray.is_initialized():
        yield
        return
    if address != "local":
        _join(address)
        try:
            yield
        finally:
            ray.shutdown()
        return
    temp_dir = _short_temp_dir()
    logs = RunPaths.from_config(config).logs / "ray"

    def end(error: RemoteError) -> None:
        _keep_worker_logs(temp_dir, logs)
        _remove(temp_dir)
        abort(error)

    try:
        _start_local(config, temp_dir)
        with watch_ray(end):
            yield
    except BaseException:
        _keep_worker_logs(temp_dir, logs)
        raise
    finally:
        ray.shutdown()
        _remove(temp_dir)


def _remove(temp_dir: Path) -> None:
    """Remove a session's directory, in which Ray's last processes may still be writing for a moment."""
    give_up = time.monotonic() + _LEAVE_SECONDS
    while temp_dir.exists():
        shutil.rmtree(temp_dir, ignore_errors=True)
        if time.monotonic() > give_up:
            return
        time.sleep(_LEAVE_PAUSE_SECONDS)


def _export_environment(*, is_local: bool) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not is_local:
        return
    # Ray's core prints an error for every actor that may restart; what workers print is kept elsewhere.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # At Ray's default of 15 one busy neighbour takes a core away from a training thread, and all others
    # wait for that one at every barrier: measured 20 times slower on two cores.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # How long a thread spins at a barrier before it sleeps. On two cores a small model trains as fast as at
    # libgomp's default of 300,000 rounds, and 1.4 times as fast where a neighbour keeps one core busy.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # Ray reads its mode once, when it is imported; later it would ask for a token that it never makes. Where
    # it is imported already, and for a cluster (whose mode counts), Ray's own default decides: a local Ray of
    # this version makes a token and uses it.
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _join(address: str) -> None:
    import ray

    where = f"cluster.address {address}"
    fix = (
        "check that the cluster runs and that this machine reaches it; unset cluster.address and RAY_ADDRESS "
    )
    fix += "to use a local Ray"
    _probe(address, where, fix)
    outcome: Future[None] = Future()
    # Ray waits for minutes on a port that accepts and then says nothing; a thread can be left behind.
    threading.Thread(target=_init_into, args=(address, outcome), name="ray-join", daemon=True).start()
    try:
        outcome.result(timeout=_JOIN_SECONDS)
    except TimeoutError as error:
        raise RemoteError(
            f"the Ray cluster did not answer within {_JOIN_SECONDS:.0f} s", where=where, fix=fix
        ) from error
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise RemoteError(
            f"the Ray cluster can't be joined: {_in_one_line(error)}",
            where=where,
            fix=f"{fix}; its Ray and Python versions and its RAY_AUTH_TOKEN must be the ones here",
        ) from error


def _in_one_line(error: Exception) -> str:
    """Ray says which versions differ over several lines."""
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


def _init_into(address: str, outcome: Future[None]) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the waiting thread raises it
        outcome.set_exception(error)
    else:
        outcome.set_result(None)


def _probe(address: str, where: str, fix: str) -> None:
    """Knock at the head's port: Ray itself would wait for minutes."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise RemoteError(
            "the Ray address is not host:port", where=where, fix="give it as host:6379 or ray://host:10001"
        )
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise RemoteError(f"no Ray cluster answers: {error}", where=where, fix=fix) from error


def _start_local(config: Config, temp_dir: Path) -> None:
    import ray

    cores = psutil.cpu_count() or 1
    try:
        with _notices_in(temp_dir / "notices"):
            ray.init(
                address="local",
                # Logical CPUs only order the work; fewer would deadlock small pipelines on small machines.
                num_cpus=config.cluster.num_cpus or max(cores, _SMALLEST_NUM_CPUS),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=_store_bytes(),
                _temp_dir=str(temp_dir),
            )
    except (OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise EnvironmentFault(
            f"Ray could not start on this machine: {str(error).strip().splitlines()[0]}",
            where=str(temp_dir),
            fix="free memory and disk under the temporary directory, then run again",
        ) from error


@contextmanager
def _notices_in(path: Path) -> Iterator[None]:
    """Send what Ray's core and Python parts say while they start, which no user can act on, to a file."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with path.open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def _keep_worker_logs(temp_dir: Path, target: Path) -> None:
    """What the workers printed before a failure, beside the run's own log; nothing where there is no run."""
    printed = [path for path in temp_dir.glob("session_2*/logs/worker-*") if path.stat().st_size]
    if printed and target.parent.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in printed:
            shutil.copy(path, target)


def _store_bytes() -> int:
    """Objects of a local run are small; what doesn't fit is spilled to disk."""
    room = int(psutil.virtual_memory().available * 0.3)
    shared_memory = Path("/dev/shm")  # noqa: S108
    if shared_memory.is_dir():
        room = min(room, int(shutil.disk_usage(shared_memory).free * 0.8))
    return max(_SMALLEST_STORE_BYTES, min(_LARGEST_STORE_BYTES, room))


def _short_temp_dir() -> Path:
    """A new directory whose path leaves room for Ray's socket names."""
    base = tempfile.gettempdir()
    if len(base) + len("/rs-xxxxxxxx") > _LONGEST_TEMP_DIR:
        base = "/tmp"  # noqa: S108
    try:
        return Path(tempfile.mkdtemp(prefix="rs-", dir=base))
    except OSError as error:
        raise EnvironmentFault(
            f"no temporary directory can be made: {error}", where=base, fix="free disk space, or set TMPDIR"
        ) from error
