"""The sweep's driver starts fast: torch is for the processes that train."""

from __future__ import annotations

import subprocess
import sys


def test_the_driver_needs_no_torch() -> None:
    modules = ("sweep", "entry", "trial_config", "schedule", "watching", "records", "page", "winner")
    imports = "; ".join(f"import raystill.tune.{name}" for name in modules)
    check = "; import sys; sys.exit(int('torch' in sys.modules or 'transformers' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", imports + check], check=False).returncode == 0
