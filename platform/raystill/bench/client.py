"""How fast rows come out of an API, and how many wrong ones: ours, Ray Data's HTTP stage, the openai SDK.

All three ask the scripted endpoint (lognormal 50 to 500 ms, 2 % 429 with `Retry-After: 1`) in a process of
its own. Ours is the engine that the stage generate runs, with its gate; the SDK is `asyncio.gather` over a
semaphore, with retries; Ray's stage is `HttpRequestProcessorConfig` with retries and its own defaults, whose
start-up is not counted. Every measurement has a fresh process, rounds interleave, ratios are of medians.

With few requests in flight the endpoint is the limit, which the share of it is judged by: the rate of the
same number of slots that lose no time, simulated. With many in flight the client is the limit.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import statistics
import subprocess
import sys
from typing import Any

from raystill.bench.result import BenchRow, bench_result
from raystill.errors import EnvironmentFault
from raystill.testing.scripted_chat import Latency
from raystill.testing.server import ServerProcess

RAY_GOAL, SDK_GOAL, SHARE_GOAL = 15.0, 1.2, 0.95
LATENCY = Latency(median=0.158, sigma=0.587, low=0.05, high=0.5)
_FEW, _MANY = 64, 256
_THROTTLED, _RETRY_AFTER = 0.02, 1.0
_REQUESTS_PER_MINUTE = 9_000
_WRONG_FAULTS = ("500:0.02", "error_200:0.02", "empty_choices:0.02", "null_content:0.02")
_SIMULATIONS = 20


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure the three in turns. `quick`: one round, fewer rows.

    Raises EnvironmentFault where the openai package is not installed or a side fails.
    """
    from importlib.util import find_spec

    if find_spec("openai") is None:
        raise EnvironmentFault(
            "the benchmark's peer, openai, is not installed", fix="pip install raystill[bench]"
        )
    rows, ray_rows, rounds = (500, 256, 1) if quick else (2000, 2000, 3)
    sides = (
        ("ours", _FEW, rows, 0),
        ("sdk", _FEW, rows, 0),
        ("ours", _MANY, rows, 0),
        ("sdk", _MANY, rows, 0),
        ("ours", _FEW, rows, _REQUESTS_PER_MINUTE),
        ("ray", _FEW, ray_rows, 0),
    )
    rates: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(rounds):
        for side, in_flight, count, per_minute in sides:
            found = _measure_speed(side, in_flight, count, per_minute)
            rates.setdefault((side, in_flight, per_minute), []).append(found)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    wrong = {side: _measure_wrong(side, 200 if quick else 500) for side in ("ours", "sdk", "ray")}
    return bench_result("client", [*_speed_rows(medians, rows), *_wrong_rows(wrong)])


def simulated_rate(in_flight: int, rows: int, noise: random.Random) -> float:
    """Rows per second of `in_flight` slots that lose no time: the limit that the endpoint sets.

    A throttled request takes no time and comes back `_RETRY_AFTER` later, before fresh rows.
    """
    free = [0.0] * in_flight
    waiting: list[float] = []
    fresh, finished, now = rows, 0, 0.0
    while finished < rows:
        now = heapq.heappop(free)
        if waiting and (waiting[0] <= now or fresh == 0):
            now = max(now, heapq.heappop(waiting))
        elif fresh == 0:
            continue
        else:
            fresh -= 1
        if noise.random() < _THROTTLED:
            heapq.heappush(waiting, now + _RETRY_AFTER)
            heapq.heappush(free, now)
        else:
            finished += 1
            heapq.heappush(free, now + LATENCY.draw(noise))
    return rows / max(free)


def _speed_rows(medians: dict[tuple[str, int, int], float], rows: int) -> list[BenchRow]:
    few, many = medians["ours", _FEW, 0], medians["ours", _MANY, 0]
    limit = statistics.median(simulated_rate(_FEW, rows, random.Random(seed)) for seed in range(_SIMULATIONS))
    paced = _REQUESTS_PER_MINUTE / 60.0 * (1.0 - _THROTTLED)
    return [
        _ratio(f"{_FEW} in flight", few, medians["ray", _FEW, 0], "Ray Data HTTP stage", RAY_GOAL),
        _ratio(f"{_FEW} in flight", few, medians["sdk", _FEW, 0], "openai SDK, gather", 1.0),
        _ratio(f"{_MANY} in flight", many, medians["sdk", _MANY, 0], "openai SDK, gather", SDK_GOAL),
        _ratio(f"{_FEW} in flight", few, limit, "limit by concurrency", SHARE_GOAL),
        _ratio(
            f"{_REQUESTS_PER_MINUTE} requests a minute",
            medians["ours", _FEW, _REQUESTS_PER_MINUTE],
            paced,
            "limit by rate",
            SHARE_GOAL,
        ),
    ]


def _ratio(case: str, ours: float, peer: float, name: str, goal: float) -> BenchRow:
    ratio = ours / peer
    return BenchRow(case, "rows/s", ours, peer, name, ratio, f">= {goal}", ratio >= goal)


def _wrong_rows(wrong: dict[str, int]) -> list[BenchRow]:
    names = {"sdk": "openai SDK, gather", "ray": "Ray Data HTTP stage"}
    return [
        BenchRow(
            "bad answers", "wrong rows kept", wrong["ours"], wrong[side], name, None, "0", wrong["ours"] == 0
        )
        for side, name in names.items()
    ]


def _measure_speed(side: str, in_flight: int, rows: int, per_minute: int) -> float:
    latency = ",".join(str(value) for value in vars(LATENCY).values())
    arguments = ["--latency", latency, "--fault", f"429={_RETRY_AFTER:g}:{_THROTTLED}"]
    with ServerProcess("raystill.testing.scripted_api", arguments) as server:
        return float(_run_side(side, server.url, in_flight, rows, per_minute)["rows_per_s"])


def _measure_wrong(side: str, rows: int) -> int:
    faults = [argument for fault in _WRONG_FAULTS for argument in ("--fault", fault)]
    with ServerProcess("raystill.testing.scripted_api") as server:
        arguments = ["--upstream", server.url, "--seed", "1", *faults]
        with ServerProcess("raystill.testing.fault_proxy", arguments) as proxy:
            return int(_run_side(side, proxy.url, _FEW, rows, 0)["wrong"])


def _run_side(side: str, url: str, in_flight: int, rows: int, per_minute: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "raystill.bench.client_sides", side, url]
    finished = subprocess.run(
        [*command, str(in_flight), str(rows), str(per_minute)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    if finished.returncode:
        raise EnvironmentFault(f"the benchmark's side {side!r} failed", where=finished.stderr[-2000:])
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found
