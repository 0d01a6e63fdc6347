"""What a store of millions of rows costs to come back to: resume, plan, recovery, fsync, capture memory.

Every figure is that of a process of its own. A resume is what the stage does with its store before it asks
anything: recover journals, sweep, refresh the indexes, count, list what is pending; its seconds count from
the process's start, with interpreter and imports. The store is built by the real writer and is warm in the
page cache; the first resume after it also writes the indexes. Planning names the requests of prompts that an
API renders, over a store that has answered those of the case before. Journals are those of processes that
died without closing them, in segments of the usual size. Without fsync means the same code in a process
whose `os.fsync` does nothing.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.bench.own_process import run_in_own_process
from raystill.bench.result import BenchRow, bench_result

SECONDS_GOAL, MEMORY_GOAL, FLAT_GOAL = 10.0, 500.0, 1.25
_ADDED = 1000
_RECORDED = "recorded"
# Processes that write the synthetic store.
_BUILDERS = 2


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `partitions` and `rows_per_part` are those of the store that is resumed."""

    rows: int = 10_000_000
    partitions: int = 64
    rows_per_part: int = 4096
    prompts: int = 200_000
    journal_records: int = 1_000_000
    segment_records: int = 50_000
    fsync_rows: int = 50_000
    capture_rows: tuple[int, int] = (10_000, 1_000_000)
    rounds: int = 3


QUICK = Sizes(
    rows=20_000,
    partitions=8,
    prompts=3_000,
    journal_records=20_000,
    segment_records=10_000,
    fsync_rows=5_000,
    capture_rows=(2_000, 10_000),
    rounds=1,
)


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure everything once, the fsync cost in turns. `quick`: thousands of rows.

    Needs about 2 GB of disk for a while (quick: 50 MB), and a quarter of an hour on two cores. Raises
    EnvironmentFault where a process fails.
    """
    return bench_result("resume", measure(QUICK if quick else Sizes()))


def measure(sizes: Sizes) -> list[BenchRow]:
    """The benchmark's rows; scratch files are gone afterwards."""
    rows: list[BenchRow] = []
    for part in (_resume_rows, _plan_rows, _recovery_rows, _fsync_rows, _capture_rows):
        with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
            rows += part(sizes, Path(scratch))
    return rows


def resume_rows(case: str, found: dict[str, Any], wanted: int) -> list[BenchRow]:
    """Seconds, peak memory and pending requests of one resume, of which `wanted` should be pending."""
    seconds, peak_mb, pending = found["seconds"], found["peak_mb"], found["pending"]
    return [
        BenchRow(case, "seconds", seconds, None, "", None, f"< {SECONDS_GOAL:g}", seconds < SECONDS_GOAL),
        BenchRow(case, "peak MB", peak_mb, None, "", None, f"< {MEMORY_GOAL:g}", peak_mb < MEMORY_GOAL),
        BenchRow(case, "pending", pending, None, "", None, f"{wanted}", pending == wanted),
    ]


def flat_row(case: str, small: tuple[int, float], large: tuple[int, float]) -> BenchRow:
    """Peak memory of (rows, MB) of a large capture against that of a small one."""
    ratio = large[1] / small[1]
    return BenchRow(
        f"{case}, {large[0]:,} rows", "peak MB", large[1], small[1], f"{small[0]:,} rows", ratio,
        f"<= {FLAT_GOAL}", ratio <= FLAT_GOAL,
    )  # fmt: skip


def _step(*arguments: Any) -> dict[str, Any]:
    return run_in_own_process("raystill.bench.resume_steps", [str(argument) for argument in arguments])


def _resume_rows(sizes: Sizes, scratch: Path) -> list[BenchRow]:
    shape = (sizes.rows, _ADDED, sizes.partitions, sizes.rows_per_part)
    started = time.monotonic()
    with ThreadPoolExecutor(_BUILDERS) as pool:
        shares = [f"{first}/{_BUILDERS}" for first in range(_BUILDERS)]
        list(pool.map(lambda share: _step("build", scratch, share, *shape), shares))
    rate = sizes.rows / (time.monotonic() - started)
    store, table, larger = (scratch / name for name in ("store", "requests.parquet", "more_requests.parquet"))
    name = f"{sizes.rows:,} rows"
    rows = [BenchRow(f"{name}, built", "rows/s", rate, None, "", None, _RECORDED, True)]
    rows += resume_rows(f"{name}, first resume", _step("resume", store, table), 0)
    rows += resume_rows(f"{name}, nothing to do", _step("resume", store, table), 0)
    return rows + resume_rows(f"{name}, {_ADDED:,} added", _step("resume", store, larger), _ADDED)


def _plan_rows(sizes: Sizes, scratch: Path) -> list[BenchRow]:
    """What it takes to name a run's requests: all of them, none that are new, and some that are."""
    rows = []
    for case, count, wanted in (
        ("listed", sizes.prompts, sizes.prompts),
        ("unchanged", sizes.prompts, 0),
        (f"{_ADDED:,} added", sizes.prompts + _ADDED, _ADDED),
    ):
        name, found = f"{sizes.prompts:,} prompts, {case}", _step("plan", scratch, count)
        seconds, peak_mb, pending = found["seconds"], found["peak_mb"], found["pending"]
        rows += [
            BenchRow(name, "seconds", seconds, None, "", None, _RECORDED, True),
            BenchRow(name, "peak MB", peak_mb, None, "", None, f"< {MEMORY_GOAL:g}", peak_mb < MEMORY_GOAL),
            BenchRow(name, "pending", pending, None, "", None, f"{wanted}", pending == wanted),
        ]
    return rows


def _recovery_rows(sizes: Sizes, scratch: Path) -> list[BenchRow]:
    records = sizes.journal_records
    _step("journal", scratch / "store", records, sizes.segment_records)
    found = _step("recover", scratch / "store")
    case = f"{records:,} journal records recovered"
    is_whole = found["rows"] == records
    return [
        BenchRow(case, "rows", found["rows"], None, "", None, f"{records}", is_whole),
        BenchRow(case, "seconds", found["seconds"], None, "", None, _RECORDED, True),
        BenchRow(
            case, "peak MB", found["peak_mb"], None, "", None, f"< {MEMORY_GOAL:g}",
            found["peak_mb"] < MEMORY_GOAL,
        ),
    ]  # fmt: skip


def _fsync_rows(sizes: Sizes, scratch: Path) -> list[BenchRow]:
    rates: dict[str, list[float]] = {"with": [], "without": []}
    for round_number in range(sizes.rounds):
        for side, values in rates.items():
            place = scratch / f"{round_number}-{side}"
            values.append(_step("fsync", place, sizes.fsync_rows, side)["rows_per_s"])
            shutil.rmtree(place)
    ours, without = (statistics.median(values) for values in rates.values())
    return [
        BenchRow("journal, fsync", "rows/s", ours, without, "without fsync", ours / without, _RECORDED, True)
    ]


def _capture_rows(sizes: Sizes, scratch: Path) -> list[BenchRow]:
    rows = []
    for form, case in (("parts", "rows with top-20 as parts"), ("journal", "answers through the journal")):
        peaks = []
        for count in sizes.capture_rows:
            place = scratch / f"{form}-{count}"
            peaks.append((count, float(_step("capture", place, count, form)["peak_mb"])))
            shutil.rmtree(place)
        rows.append(flat_row(case, peaks[0], peaks[1]))
    return rows
