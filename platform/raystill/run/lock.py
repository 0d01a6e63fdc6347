"""One writer per run directory. The lock dies with its process, so a crash never leaves a stale one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from raystill.errors import EnvironmentFault
from raystill.run.publish import make_directory

# Who looks whether a lock is held (`is_locked`) holds it for a moment.
_LOOK_SECONDS = 0.5


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold `path` exclusively for the body.

    Raises EnvironmentFault naming the holder's process and host if somebody else has it, and where the place
    can't be locked at all.
    """
    make_directory(path.parent)
    holder = path.with_suffix(".holder.json")
    lock = FileLock(path, timeout=_LOOK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise EnvironmentFault(
            f"another process works on this run ({_describe(holder)})",
            where=str(path.parent),
            fix="wait for it, stop it, or choose another run.name",
        ) from error
    except OSError as error:
        raise EnvironmentFault(
            f"the run can't be locked: {error.strerror}",
            where=str(path),
            fix="choose another run.dir, on a filesystem that has locks and that you may write",
        ) from error
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the run's lock; asks for it without creating it."""
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _describe(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        return f"pid {facts['pid']} on {facts['host']}"
    except (OSError, ValueError, KeyError):
        return "its process is unknown"
