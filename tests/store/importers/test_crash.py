"""An import that is killed anywhere goes on where it stopped: nothing is lost, nothing stands twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from foreign import load, write_lines

from raystill.store.reader import load_rows
from raystill.store.stats import compute_stats


@pytest.mark.parametrize(
    "failpoint",
    ["publish_file:before_rename:1", "store:part_written:2", "store:before_commit:3", "store:after_commit:3"],
)
def test_a_killed_import_is_finished_by_the_next(tmp_path: Path, failpoint: str) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
        for i in range(40)
    ]
    path = write_lines(tmp_path / "rows.jsonl", *rows, "{broken")
    script = Path(__file__).with_name("crash_import.py")
    done = subprocess.run(
        [sys.executable, str(script), str(path), str(tmp_path / "store")],
        env=os.environ | {"RAYSTILL_FAILPOINT": failpoint}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    store, counts = load(tmp_path, "messages", path, teacher="t", num_partitions=2)
    assert counts.num_added + counts.num_known == 40
    assert counts.num_added > 0
    assert {row.completion for row in load_rows(store)} == {f"a{i}" for i in range(40)}
    stats = compute_stats(store)
    assert (stats.num_rows, stats.num_duplicates, stats.num_rejects) == (40, 0, 1)
