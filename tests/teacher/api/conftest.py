"""Makes `asking` importable by the tests beside it: test directories are no packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("asking", Path(__file__).with_name("asking.py"))
assert _SPEC is not None and _SPEC.loader is not None
_ASKING = importlib.util.module_from_spec(_SPEC)
sys.modules.setdefault("asking", _ASKING)
if sys.modules["asking"] is _ASKING:
    _SPEC.loader.exec_module(_ASKING)
