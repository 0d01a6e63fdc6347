"""An abort ends the process from any thread, with the error's words and exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import threading
from raystill.errors import RemoteError
from raystill.run.abort import abort, say_aborts
{prepare}
threading.Thread(target=abort, args=(RemoteError("Ray died", "here", "again"),)).start()
threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("", "Ray died\n  where: here\n  fix:   again\n"),
        ("say_aborts(lambda error: print(error.what.upper()))", "RAY DIED\n"),
        ("say_aborts(lambda error: 1 / 0)", ""),
    ],
)
def test_the_process_ends_with_the_errors_code(prepare: str, said: str) -> None:
    """F3."""
    command = [sys.executable, "-c", PROGRAM.format(prepare=prepare)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 5
    assert done.stdout + done.stderr == said
