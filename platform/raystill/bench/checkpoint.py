"""How long a save keeps training waiting, what it writes, and how much disk it takes, against HF and Ray; and
how long a killed run takes to its next new step (`checkpoint_kill`)."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.bench import checkpoint_kill
from raystill.bench.checkpoint_kill import KillSizes, measure_kills
from raystill.bench.own_process import run_in_own_process
from raystill.bench.result import BenchRow, bench_result

BLOCKED_GOAL, WRITTEN_GOAL, PEAK_GOAL = 0.1, 1.02, 2.05
OURS, PEERS = "ours", ("HF Trainer", "Ray SYNC")
_MEGA = 1e6


@dataclass(frozen=True)
class Sizes:
    """State sizes in MB (10^6 bytes), rounds of all sides in turns, and saves per round."""

    megabytes: tuple[float, ...] = (120.0, 1000.0)
    rounds: int = 3
    saves: int = 4


QUICK = Sizes(megabytes=(12.0,), rounds=1, saves=3)


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """All sides in turns, medians of the rounds. Needs 4 GB of disk for a while (quick: 50 MB).

    Raises EnvironmentFault where a side fails.
    """
    rows = measure(QUICK if quick else Sizes())
    rows += measure_kills(checkpoint_kill.QUICK if quick else KillSizes())
    return bench_result("checkpoint", rows)


def measure(sizes: Sizes) -> list[BenchRow]:
    """The benchmark's rows; scratch files are gone afterwards."""
    rows: list[BenchRow] = []
    for megabytes in sizes.megabytes:
        found: dict[str, list[dict[str, float]]] = {side: [] for side in (OURS, *PEERS)}
        for _ in range(sizes.rounds):
            for side, results in found.items():
                with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
                    results.append(_run_side(side, megabytes, sizes.saves, Path(scratch)))
        rows += compare(f"{megabytes:g} MB", {side: _medians(results) for side, results in found.items()})
    return rows


def compare(case: str, found: dict[str, dict[str, float]]) -> list[BenchRow]:
    """Rows of one size from each side's medians. Bytes and disk are multiples of what one checkpoint has."""
    ours, rows = found[OURS], []
    for peer in PEERS:
        mine, theirs = ours["blocked_s"], found[peer]["blocked_s"]
        ratio = mine / theirs
        rows.append(
            BenchRow(
                case, "step blocked, ms", mine * 1e3, theirs * 1e3, peer, ratio,
                f"<= {BLOCKED_GOAL}", ratio <= BLOCKED_GOAL,
            )
        )  # fmt: skip
    size = ours["size_bytes"]
    for metric, key, goal in (
        ("bytes written / size", "written_bytes", WRITTEN_GOAL),
        ("peak disk / size, one kept", "peak_bytes", PEAK_GOAL),
    ):
        for peer in PEERS:
            mine, theirs = ours[key] / size, found[peer][key] / size
            rows.append(BenchRow(case, metric, mine, theirs, peer, mine / theirs, f"<= {goal}", mine <= goal))
    return rows


def _run_side(side: str, megabytes: float, saves: int, scratch: Path) -> dict[str, float]:
    return run_in_own_process(
        "raystill.bench.checkpoint_sides", [side, str(megabytes), str(saves), str(scratch)]
    )


def _medians(results: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(result[key] for result in results) for key in results[0]}
