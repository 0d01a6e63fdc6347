"""Saying when a stage waits for nodes: at its start, and where nodes were lost and not replaced yet."""

from __future__ import annotations

import threading
from collections.abc import Callable

from raystill.errors import Problem

_POLL_SECONDS, _ANSWER_SECONDS = 5.0, 30.0


class NodeWatch:
    """A thread that looks whether a stage has what it asks for, and tells when that changes.

    `look` says what lacks, if anything; `tell` gets an event's name and fields: `waiting_for_nodes` with what
    lacks, and `nodes_came` once nothing does any more.
    """

    def __init__(self, look: Callable[[], Problem | None], tell: Callable[..., None]) -> None:
        self._look, self._tell = look, tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raystill-nodes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; Ray may end afterwards."""
        self._over.set()
        self._thread.join(timeout=_ANSWER_SECONDS)

    def _run(self) -> None:
        from ray.exceptions import RayError

        is_waiting = False
        while not self._over.is_set():
            try:
                lacking = self._look()
            except (RayError, ConnectionError, RuntimeError):
                return  # without its cluster the stage has errors of its own
            if lacking is not None and not is_waiting:
                self._tell("waiting_for_nodes", because=lacking.what)
            if lacking is None and is_waiting:
                self._tell("nodes_came")
            is_waiting = lacking is not None
            self._over.wait(_POLL_SECONDS)
