"""One writer per run; a lock never outlives its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raystill.errors import EnvironmentFault
from raystill.run.lock import hold_lock

HOLD = """
import sys
from pathlib import Path
from raystill.run.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def test_the_second_process_fails_at_once_and_names_the_first(tmp_path: Path) -> None:
    """F30."""
    path = tmp_path / "run" / "run.lock"
    with another_process(path) as child:
        with pytest.raises(EnvironmentFault) as caught, hold_lock(path):
            pass
        assert f"pid {child.pid} on {socket.gethostname()}" in str(caught.value)
        assert caught.value.exit_code == 4
        child.communicate()  # ends its input: it lets go
        with hold_lock(path):
            pass


def test_a_killed_holder_leaves_no_stale_lock(tmp_path: Path) -> None:
    """F30."""
    path = tmp_path / "run.lock"
    with another_process(path) as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        with hold_lock(path):
            assert f'"pid": {os.getpid()}' in (tmp_path / "run.holder.json").read_text(encoding="utf-8")
    assert not (tmp_path / "run.holder.json").exists()


def test_the_lock_is_given_back_when_the_body_fails(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with pytest.raises(ValueError, match="x"), hold_lock(path):
        raise ValueError("x")
    with hold_lock(path):
        pass


def test_a_holder_note_that_is_damaged_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with another_process(path):
        (tmp_path / "run.holder.json").write_text("[", encoding="utf-8")
        with pytest.raises(EnvironmentFault, match="its process is unknown"), hold_lock(path):
            pass


def test_a_place_that_can_not_be_locked_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(EnvironmentFault, match="can't be locked"), hold_lock(tmp_path / "run.lock"):
        pass
