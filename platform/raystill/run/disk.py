"""Free space: what the filesystems in use have, and the one answer to "may I write N bytes here?"."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raystill.errors import DiskFault

_GIB = 2**30


@dataclass(frozen=True)
class FilesystemReading:
    """A filesystem that a run uses. `uses` names what lies on it; `path` is one place there."""

    uses: tuple[str, ...]
    path: Path
    total_bytes: int
    free_bytes: int

    @property
    def free_gb(self) -> float:
        """Free space in GiB."""
        return self.free_bytes / _GIB


def existing_place(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def free_bytes(path: Path) -> int:
    """Bytes free for us on the filesystem that holds `path`, which need not exist yet."""
    return shutil.disk_usage(existing_place(path)).free


def read_filesystems(places: Mapping[str, Path]) -> list[FilesystemReading]:
    """What the filesystems under `places` (use to path) have now, each once, in the order of the uses."""
    uses: dict[int, list[str]] = {}
    paths: dict[int, Path] = {}
    for use, path in places.items():
        place = existing_place(path)
        device = os.stat(place).st_dev
        uses.setdefault(device, []).append(use)
        paths.setdefault(device, place)
    readings = []
    for device, place in paths.items():
        usage = shutil.disk_usage(place)
        readings.append(FilesystemReading(tuple(uses[device]), place, usage.total, usage.free))
    return readings


def has_room(path: Path, num_bytes: int, *, margin: float = 1.1) -> bool:
    """Whether `num_bytes` times `margin` are free where `path` is or will be."""
    return free_bytes(path) >= int(num_bytes * margin)


def require_space(path: Path, num_bytes: int, *, margin: float = 1.1, fix: str = "") -> None:
    """Raises DiskFault, with both numbers, unless `has_room`; its cause is the one of a full disk."""
    free, needed = free_bytes(path), int(num_bytes * margin)
    if free < needed:
        raise DiskFault(
            f"not enough disk: {_show(needed)} needed, {_show(free)} free",
            where=str(path),
            fix=fix or "free some space or move the run to a larger disk, then run again: it resumes",
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _show(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB / 100 else f"{num_bytes / 2**20:.2f} MiB"
