"""Engine processes end with the process that started them, however that one ends.

vLLM's children outlive a parent that is killed, and keep its memory and its GPU. A guard process waits for
the end of a pipe that only the parent holds open, then kills what is left. Run as `python -m` with
`pid:start-time` arguments; the start time keeps a reused pid safe.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class GuardedProcesses:
    """Child processes of this one, and the guard that outlives it."""

    children: tuple[psutil.Process, ...]
    guard: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Kill the children now and dismiss the guard."""
        kill_processes(self.children)
        if self.guard.stdin is not None:
            self.guard.stdin.close()
        self.guard.wait()


def list_children() -> set[psutil.Process]:
    """All descendants of this process."""
    return set(psutil.Process().children(recursive=True))


def guard_children(children: set[psutil.Process]) -> GuardedProcesses:
    """Start a guard for `children`."""
    names = [f"{child.pid}:{child.create_time()}" for child in children if child.is_running()]
    command = [sys.executable, "-m", "raystill.teacher.orphan_guard", *names]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    return GuardedProcesses(tuple(children), guard)


def kill_processes(processes: tuple[psutil.Process, ...] | list[psutil.Process]) -> None:
    """Kill and wait; processes that are gone already, and pids that are others' now, are left alone."""
    alive = []
    for process in processes:
        try:
            if process.is_running():
                process.kill()
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=5.0)


def _find(name: str) -> psutil.Process | None:
    pid, _, started = name.partition(":")
    try:
        process = psutil.Process(int(pid))
        return process if process.create_time() == float(started) else None
    except psutil.NoSuchProcess:
        return None


def main() -> None:
    """Wait for the parent's end, then kill what it has left."""
    guarded = [process for name in sys.argv[1:] if (process := _find(name)) is not None]
    sys.stdin.buffer.read()
    kill_processes(guarded)


if __name__ == "__main__":
    main()
