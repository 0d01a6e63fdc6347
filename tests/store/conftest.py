"""Makes `store_builder` and `power_loss` importable for the tests beside them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for _name in ("store_builder", "power_loss"):
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_name}.py"))
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
