"""A job with a prompt that kills its engine and one that hangs it ends, with those two rejected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.store.reader import iter_tables, load_rows
from raystill.store.store import load_store
from raystill.store.verify import verify_store
from raystill.teacher.fake_engine import HANG_VARIABLE, POISON_VARIABLE, SECONDS_PER_ROW_VARIABLE

pytestmark = pytest.mark.ray
ROWS = 12


def test_the_rows_that_kill_and_hang_an_engine_are_rejected(
    make_config: Callable[..., Config], save_prompt_table: Callable[..., RunPaths], tmp_path: Path
) -> None:
    """F39."""
    config = make_config(vllm={"max_restarts": 1, "stall_timeout_s": 3.0})
    paths = save_prompt_table(config, ROWS)
    marks = {POISON_VARIABLE: "number 3", HANG_VARIABLE: "number 8", SECONDS_PER_ROW_VARIABLE: "0.05"}
    command = [sys.executable, str(Path(__file__).with_name("killed_driver.py")), config.model_dump_json()]
    log = tmp_path / "driver.log"
    with log.open("wb") as output:
        driver = subprocess.run(
            command, env={**os.environ, **marks}, stdout=output, stderr=output, timeout=1200, check=False
        )
    assert driver.returncode == 0, log.read_text()[-3000:]
    store = load_store(paths.store)
    rejects = [row for table in iter_tables(store, kind="rejects") for row in table.to_pylist()]
    assert {(row["prompt_id"], row["code"]) for row in rejects} == {
        ("p00003", "engine_died"),
        ("p00008", "engine_died"),
    }
    assert all(row["attempts"] >= 2 for row in rejects)
    rows = load_rows(store)
    assert sorted(row.prompt_id for row in rows) == [f"p{i:05d}" for i in range(ROWS) if i not in (3, 8)]
    report = verify_store(paths.store)
    assert report.ok
    assert report.num_duplicates == 0
    manifest = json.loads((paths.stage_dir("generate") / "manifest.json").read_text())
    assert manifest["metrics"]["rejects"] == {"engine_died": 2}
