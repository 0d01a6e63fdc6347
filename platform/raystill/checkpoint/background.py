"""Writing checkpoints beside training: the step waits for a copy in memory at most, never for the disk.

A save goes through two phases in one thread: tensors are copied to buffers on the CPU, then the buffers are
written. Forward and backward passes only read what is copied, so they go on; whoever changes the tensors
(the optimizer's step) first calls `wait_copied`. One save is in flight: the next one waits for it, which
bounds memory at one copy of the state. Where memory has no room for the copy, the tensors are written as
they are and `wait_copied` lasts until the disk has them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import torch

from raystill.checkpoint.parts import TensorGroups
from raystill.run.failpoint import failpoint

_ROOM = 1.2


class BackgroundWriter:
    """Runs one publishing function at a time on a copy of the tensors. Use it from one thread."""

    def __init__(self) -> None:
        # One thread of computation: with a team of its own this thread would make OpenMP count more threads
        # than cores, and training's own team would from then on sleep at every barrier (a step of a small
        # model took 1.7 times as long after the first save).
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix="raystill-checkpoint", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._in_flight: Future[Path] | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self.blocked_seconds = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight."""
        return self._in_flight is not None and not self._in_flight.done()

    def submit(self, tensors: TensorGroups, publish: Callable[[TensorGroups], Path]) -> None:
        """Copy `tensors` (group to name to tensor, any shapes) and call `publish` with the copy, elsewhere.

        Waits for the save before this one. Raises what that one raised; this one is then not begun.
        """
        self.flush()
        self._copied.clear()
        self._in_flight = self._executor.submit(self._work, tensors, publish)

    def wait_copied(self) -> None:
        """Return once the tensors of the save in flight may be changed."""
        if not self._copied.is_set():
            started = time.monotonic()
            self._copied.wait()
            self.blocked_seconds += time.monotonic() - started

    def raise_if_failed(self) -> None:
        """Raise what the last save raised, if it has ended. Never waits."""
        if self._in_flight is not None and self._in_flight.done():
            self.flush()

    def flush(self) -> Path | None:
        """Wait for the save in flight, if any; returns what it published. Raises what it raised, once."""
        if self._in_flight is None:
            return None
        started = time.monotonic()
        in_flight, self._in_flight = self._in_flight, None
        try:
            return in_flight.result()
        finally:
            self.blocked_seconds += time.monotonic() - started

    def close(self) -> None:
        """Let the save in flight end, whatever comes of it, and let go of the buffers."""
        self._executor.shutdown(wait=True)
        self._buffers.clear()

    def _work(self, tensors: TensorGroups, publish: Callable[[TensorGroups], Path]) -> Path:
        try:
            copies = self._copy(tensors) if self._has_room(tensors) else None
            if copies is not None:
                self._copied.set()
                failpoint("checkpoint:copied")
            return publish(tensors if copies is None else copies)
        finally:
            self._copied.set()

    def _has_room(self, tensors: TensorGroups) -> bool:
        missing = sum(
            tensor.numel() * tensor.element_size()
            for group, named in tensors.items()
            for name, tensor in named.items()
            if (group, name) not in self._buffers
        )
        return missing * _ROOM < int(psutil.virtual_memory().available)

    def _copy(self, tensors: TensorGroups) -> dict[str, dict[str, torch.Tensor]]:
        copies: dict[str, dict[str, torch.Tensor]] = {}
        kept: dict[tuple[str, str], torch.Tensor] = {}
        for group, named in tensors.items():
            copies[group] = {}
            for name, tensor in named.items():
                buffer = self._buffers.get((group, name))
                if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                    buffer = torch.empty(tensor.shape, dtype=tensor.dtype)
                buffer.copy_(tensor.detach())
                kept[group, name] = copies[group][name] = buffer
        self._buffers = kept
        return copies
