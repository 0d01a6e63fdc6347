"""What a disk holds after the power goes: what was flushed, and nothing else.

While `watch` is active, every flush is noted. A file's content lasts from its own flush on, a name from the
flush of its directory on; before that a new name is not there, a removed one still is, and a file whose name
lasts but whose content was never flushed is empty. `states` has one entry for every moment between two
flushes: each is a state that a power loss may leave.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

_Names = dict[str, tuple[int, bool]]  # name -> inode, and whether it is a directory


@dataclass(frozen=True)
class State:
    """The disk at one moment, and how much had been promised by then."""

    promised: int
    _root: Path
    _contents: dict[int, bytes]
    _names: dict[Path, _Names]

    def write(self, target: Path) -> Path:
        """Build the directory as it would be found."""
        self._write_directory(self._root, target)
        return target

    def _write_directory(self, path: Path, target: Path) -> None:
        target.mkdir()
        for name, (inode, is_directory) in self._names.get(path, {}).items():
            if is_directory:
                self._write_directory(path / name, target / name)
            else:
                (target / name).write_bytes(self._contents.get(inode, b""))


@dataclass
class Disk:
    """The recorder."""

    root: Path
    states: list[State] = field(default_factory=list)
    promised: int = 0
    _contents: dict[int, bytes] = field(default_factory=dict)
    _names: dict[Path, _Names] = field(default_factory=dict)
    _held: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def promise(self) -> None:
        """From now on one more thing must survive."""
        with self._lock:
            self.promised += 1
            self._note()

    def flushed(self, descriptor: int) -> None:
        """A file or a directory was flushed."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        with self._lock:
            facts = os.fstat(descriptor)
            if stat.S_ISDIR(facts.st_mode):
                with os.scandir(path) as found:
                    self._names[path] = {e.name: (e.inode(), e.is_dir()) for e in found}
            else:
                if facts.st_ino not in self._contents:
                    self._held.append(os.dup(descriptor))  # or its number would be given to another file
                self._contents[facts.st_ino] = path.read_bytes()
            self._note()

    def _note(self) -> None:
        self.states.append(State(self.promised, self.root, dict(self._contents), dict(self._names)))

    @contextmanager
    def watch(self) -> Iterator[Disk]:
        """Record every flush of this process."""
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            flush(descriptor)
            self.flushed(descriptor)

        try:
            with mock.patch("os.fsync", fsync):
                yield self
        finally:
            for descriptor in self._held:
                os.close(descriptor)
