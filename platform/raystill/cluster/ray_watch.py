"""Noticing that the Ray on this machine has died.

When its raylet is gone, Ray ends the driver after some seconds from within, with exit code 1 and no word of
what to do; nothing in Python runs any more. So a thread looks after Ray's processes and is faster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from raystill.errors import RemoteError

_PROCESSES = ("raylet", "gcs_server")
_POLL_SECONDS = 0.5


@contextmanager
def watch_ray(on_death: Callable[[RemoteError], None]) -> Iterator[None]:
    """Call `on_death`, from a thread, if a process of the Ray that was started here ends meanwhile."""
    watched = [process for process in psutil.Process().children() if process.name() in _PROCESSES]
    over = threading.Event()

    def look() -> None:
        while not over.wait(_POLL_SECONDS):
            dead = [name for process in watched if (name := _name_if_dead(process))]
            if dead and not over.is_set():
                on_death(describe_death(dead[0]))
                return

    thread = threading.Thread(target=look, name="ray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def describe_death(name: str) -> RemoteError:
    """The error for a Ray that lost its process `name`."""
    return RemoteError(
        f"Ray died: its process {name} on this machine has ended",
        where="the local Ray of this run",
        fix="look for out-of-memory kills (dmesg) and into logs/ray of the run, then run the same command "
        "again: what is committed is kept, and it goes on from there",
    )


def _name_if_dead(process: psutil.Process) -> str:
    """Its name, "" while it lives. A child that nobody has waited for stays as a zombie."""
    with suppress(psutil.NoSuchProcess):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return ""
        return str(process.name())
    return "raylet"
