"""SIGTERM, as `ray job stop` sends it, ends work like Ctrl-C does: cleaned up, to be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def install_sigterm() -> None:
    """Let SIGTERM raise KeyboardInterrupt; once more after Ray has started, which installs its own handler.

    Only the main thread can; elsewhere nothing happens.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_interrupt)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM interrupts the body; what it did before is restored afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    install_sigterm()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
