"""Makes `store_builder` importable for the tests beside it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).with_name("store_builder.py")
_SPEC = importlib.util.spec_from_file_location("store_builder", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
sys.modules["store_builder"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["store_builder"])
