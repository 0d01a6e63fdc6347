"""A Batch API to ask, and jobs that ask it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

JOB_PATH = Path(__file__).parent / "batch_job.py"


@pytest.fixture(scope="session")
def batch_job_module() -> ModuleType:
    """`batch_job.py` beside this file."""
    spec = importlib.util.spec_from_file_location("batch_job", JOB_PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["batch_job"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_job(batch_job_module: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """A factory of jobs on one store: `make_job(base_url, num_rows, **settings)`."""

    def make(base_url: str, num_rows: int, **settings: Any) -> Any:
        texts = settings.pop("texts", [f"question {index}" for index in range(num_rows)])
        return batch_job_module.BatchJob(str(tmp_path), base_url, texts, **settings)

    return make
