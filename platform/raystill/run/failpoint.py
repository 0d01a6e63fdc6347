"""Deterministic crashes for tests: RAYSTILL_FAILPOINT=name:n kills the process at the n-th pass of `name`.

Compiled into the writers on purpose, so that crash tests exercise the code that ships. Costs one
environment look-up per call; never set in production.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_VARIABLE = "RAYSTILL_FAILPOINT"
_passes: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here, without any clean-up, if the environment names this point and pass (counted from 1)."""
    wanted = os.environ.get(_VARIABLE)
    if not wanted:
        return
    wanted_name, _, wanted_pass = wanted.rpartition(":")
    if wanted_name != name:
        return
    _passes[name] += 1
    if _passes[name] == int(wanted_pass):
        os.kill(os.getpid(), signal.SIGKILL)
