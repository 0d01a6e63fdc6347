"""Makes `killed_run` importable for the soaks beside it, and says which seed a soak had."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("killed_run", Path(__file__).with_name("killed_run.py"))
assert _spec is not None
assert _spec.loader is not None
_killed_run = importlib.util.module_from_spec(_spec)
sys.modules["killed_run"] = _killed_run
_spec.loader.exec_module(_killed_run)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each soak has done, and how to do it again."""
    if _killed_run.REPORTS:
        terminalreporter.section("soaks")
        for line in _killed_run.REPORTS:
            terminalreporter.write_line(line)
