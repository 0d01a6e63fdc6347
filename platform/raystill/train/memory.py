"""The most memory that training has had."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_PEAK = "VmHWM:"


def peak_memory_gb(device: torch.device) -> float:
    """GB (10^9 bytes): of a GPU what tensors took at most, else what this process had resident at most.

    From /proc where there is one: Linux hands `ru_maxrss` of a parent down to the program that it starts.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(_PEAK):
                return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
