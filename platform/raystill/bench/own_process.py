"""One measurement in a process of its own: equally cold for every side, and its peak memory is its own."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raystill.errors import EnvironmentFault

_STATUS = Path("/proc/self/status")
_PEAK = "VmHWM:"
_FORGET = Path("/proc/self/clear_refs")


def run_in_own_process(
    module: str, arguments: list[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m module arguments` and return the JSON object that it printed last.

    `environment` is added to this process's. Raises EnvironmentFault where it fails.
    """
    finished = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **(environment or {})},
    )
    if finished.returncode:
        raise EnvironmentFault(
            f"the benchmark's side {' '.join(arguments[:2])!r} failed", where=finished.stderr[-2000:]
        )
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def forget_peak_memory() -> None:
    """Count `peak_memory_mb` from here on, and give back what is free, where the system can (Linux: proc(5),
    clear_refs; malloc_trim(3))."""
    if _FORGET.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        _FORGET.write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """The most memory that this process has had resident, in MB (10^6 bytes).

    From /proc where there is one: Linux hands `ru_maxrss` of a parent down to the program that it starts.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(_PEAK):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
