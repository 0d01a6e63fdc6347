"""Makes `asking` and `closed_driver` importable by the tests beside them: test folders are no packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _make_importable(name: str) -> None:
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


for _name in ("asking", "closed_driver"):
    _make_importable(_name)
