"""Forks that die at failpoints, for the scripts beside it that are run to be killed. Not a test module."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable


def print_kills(failpoints: Iterable[str], child: Callable[[str], None]) -> None:
    """Fork `child(label)` at the first pass of every failpoint, the second, ... until it survives.

    A child ends itself with exit code 0. Prints one JSON object: failpoint -> how many passes killed one.
    """
    killed = {}
    for name in failpoints:
        passes = 0
        while True:
            label = f"{name.replace(':', '-')}-{passes + 1}"
            pid = os.fork()
            if pid == 0:
                os.environ["RAYSTILL_FAILPOINT"] = f"{name}:{passes + 1}"
                child(label)
            _, status = os.waitpid(pid, 0)
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0, label
                break
            passes += 1
        killed[name] = passes
    print(json.dumps(killed))
