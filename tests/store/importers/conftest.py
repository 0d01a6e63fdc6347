"""Makes `foreign` importable for the tests beside it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("foreign", Path(__file__).with_name("foreign.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
sys.modules["foreign"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["foreign"])
