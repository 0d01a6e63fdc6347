"""SIGTERM ends work like Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from raystill.run.interrupts import install_sigterm, sigterm_interrupts


def test_sigterm_interrupts_the_body_and_nothing_after_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a library does that starts in between
        install_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with sigterm_interrupts():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
