"""Failpoints kill at the named pass, and cost nothing otherwise."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from raystill.run.failpoint import failpoint
for number in range(1, 4):
    failpoint("a:b")
    failpoint("c")
    print(number, flush=True)
"""


def passes(value: str) -> tuple[int, list[str]]:
    environment = {"PATH": "", "RAYSTILL_FAILPOINT": value} | ({"PYTHONPATH": ":".join(sys.path)})
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout.split()


def test_the_process_dies_at_the_named_pass() -> None:
    assert passes("a:b:1") == (-9, [])
    assert passes("a:b:3") == (-9, ["1", "2"])
    assert passes("c:2") == (-9, ["1"])


def test_nothing_happens_otherwise() -> None:
    assert passes("a:b:9") == (0, ["1", "2", "3"])
    assert passes("other:1") == (0, ["1", "2", "3"])
    assert passes("") == (0, ["1", "2", "3"])
