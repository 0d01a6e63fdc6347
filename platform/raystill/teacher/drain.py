"""A job that is told to end commits first: the rows that its workers have finished are not asked again.

Driver and workers talk through files in the scratch directory, which all of them see: no message reaches an
actor of a Ray Data pool. The first SIGINT or SIGTERM asks every worker to commit what it has, and waits for
them for a few seconds (`ray job stop` kills after three); then, or at the second signal, the job ends as it
would have without.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_SECONDS = 2.5
_POLL_SECONDS = 0.1
_ASKED = "asked"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Drain:
    """The files of one job's drain, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def join(self, worker: str, commit: Callable[[], None]) -> None:
        """As a worker: have `commit` called, in a thread of its own, once the job is told to end."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / f"{worker}.up").touch()
        threading.Thread(target=self._wait, args=(worker, commit), name="teacher-drain", daemon=True).start()

    @property
    def is_asked(self) -> bool:
        """Whether the job is told to end."""
        return (self._directory / _ASKED).exists()

    def ask(self) -> None:
        """As the driver: have all workers commit, and wait for them."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / _ASKED).touch()
        give_up = time.monotonic() + _SECONDS
        while self._names("up") - self._names("done") and time.monotonic() < give_up:
            time.sleep(_POLL_SECONDS)

    def _wait(self, worker: str, commit: Callable[[], None]) -> None:
        while not self.is_asked:
            if not self._directory.is_dir():
                return  # the job has ended by itself
            time.sleep(_POLL_SECONDS)
        commit()
        (self._directory / f"{worker}.done").touch()

    def _names(self, suffix: str) -> set[str]:
        return {path.stem for path in self._directory.glob(f"*.{suffix}")}


@contextmanager
def drained_on_signals(drain: Drain) -> Iterator[None]:
    """Ask for the drain at the first SIGINT or SIGTERM, then let that signal do what it did before.

    Outside of the main thread, where there are no signals, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        restore()  # a second signal ends the job at once
        drain.ask()
        if callable(before[number]):
            before[number](number, frame)
        raise KeyboardInterrupt

    try:
        for number in _SIGNALS:
            signal.signal(number, handle)
        yield
    finally:
        restore()
