"""Random SIGKILLs over driver, actor and engine process of an open teacher: nothing lost, nothing twice.

`killed_run` says how many, and how a failure is replayed. Most kills hit the fake engine, which lives in its
actor and starts at once; a twentieth, but at least three, hits vLLM with the demo's teacher.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from killed_run import KILLS, KilledRun, descendants, end, save_questions, title

import raystill
from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.store.commit import load_commits
from raystill.store.commit_record import list_commit_paths, load_commit
from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore, load_store
from raystill.store.verify import verify_store
from raystill.teacher.fake_engine import ASKED_VARIABLE, SECONDS_PER_ROW_VARIABLE

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.timeout(3600)]

VLLM_KILLS = max(3, KILLS // 20)
FAKE_KILLS = max(2, KILLS - VLLM_KILLS)
DEMO_TEACHER = Path(raystill.__file__).with_name("demo") / "teacher"
# Few rows, so that a kill costs little; a part is a shard, and rows of an unfinished one are not committed.
# Two engines: one works while the other starts again.
FAKE_ENGINES, IN_FLIGHT, ROWS_PER_PART = 2, 16, 16
# Shards that an actor has open at once (see `raystill.teacher.pool`): one that is full, one whose last rows
# trickle out, one whose rows wait.
OPEN_ROWS = 3 * FAKE_ENGINES * ROWS_PER_PART
SECONDS_PER_ROW = 0.25
ROWS_PER_KILL, VLLM_ROWS_PER_KILL = 160, 120


def _config(directory: Path, engine: str, num_engines: int, max_new_tokens: int) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(directory / "runs"), "name": "soak"},
            "teacher": {
                "engine": engine,
                "open": {
                    "model": {"name": str(DEMO_TEACHER), "bfloat16": False},
                    "pipeline": {"max_new_tokens": max_new_tokens, "batch_size": IN_FLIGHT},
                },
                "signals": {"num_logprobs": 8},
                "vllm": {"kv_cache_gib": 0.25, "max_num_seqs": IN_FLIGHT, "num_engines": num_engines},
                "store": {"num_partitions": 4, "rows_per_part": ROWS_PER_PART},
            },
        }
    )


@contextmanager
def _ended(run: KilledRun) -> Iterator[KilledRun]:
    try:
        yield run
    finally:
        end(run)


def _commit_paths(config: Config) -> list[Path]:
    place = RunPaths.from_config(config).store
    if not (place / "store.json").exists():
        return []
    store = load_store(place)
    return [path for part in range(store.num_partitions) for path in list_commit_paths(store, part)]


def _assert_each_row_once(store: TeacherStore, config: Config, number: int, notes: str) -> None:
    rows = [row for table in iter_tables(store, columns=("key", "prompt_id")) for row in table.to_pylist()]
    assert {row["prompt_id"] for row in rows} == {f"p{index:06d}" for index in range(number)}, notes
    parts = range(store.num_partitions)
    written = sum(commit.num_rows for part in parts for commit in load_commits(store, part, "rows"))
    assert written == len(rows) == number, notes
    assert list(iter_tables(store, kind="rejects", columns=("key",))) == [], notes
    report = verify_store(store.path)
    assert report.ok and report.num_duplicates == 0, notes
    stage = RunPaths.from_config(config).stage_dir("generate")
    counts: dict[str, Any] = json.loads((stage / "manifest.json").read_text())["counts"]
    assert (counts["requests"], counts["done"], counts["rejected"]) == (number, number, 0), notes


def test_random_kills_of_driver_and_actor_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """F1, F2."""
    config = _config(tmp_path, "fake", FAKE_ENGINES, max_new_tokens=16)
    number = ROWS_PER_KILL * FAKE_KILLS + 200
    save_questions(config, number)
    asked = tmp_path / "asked.txt"
    asked.touch()
    pending: list[int] = []

    def count_pending(victim: str) -> None:
        # The names first: what another engine commits meanwhile counts as pending. And all of it before a
        # killed engine is there again, which takes seconds.
        commits, end_of_asked = _commit_paths(config), asked.stat().st_size
        with asked.open("rb") as stream:
            keys = set(stream.read(end_of_asked).decode("ascii").split())
        pending.append(len(keys.difference(*(load_commit(path).keys for path in commits))))

    environment = {ASKED_VARIABLE: str(asked), SECONDS_PER_ROW_VARIABLE: str(SECONDS_PER_ROW)}
    run = KilledRun(config, lambda: asked.stat().st_size // 33, "ShardWorker", environment=environment)
    with _ended(run):
        run.soak({"driver": 0.2, "worker": 0.8}, (20, 60), FAKE_KILLS, after_kill=count_pending)
        store = run.finish("open teacher, fake engine")
    _assert_each_row_once(store, config, number, run.notes)
    keys = asked.read_text().split()
    assert max(pending) <= OPEN_ROWS, f"{pending}, {run.notes}"
    assert len(keys) - len(set(keys)) <= sum(pending), f"{pending}, {run.notes}"


@pytest.mark.vllm
def test_random_kills_of_driver_actor_and_engine_process_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """F1, F2, F39."""
    config = _config(tmp_path, "vllm", 1, max_new_tokens=64)
    number = VLLM_ROWS_PER_KILL * VLLM_KILLS + 200
    save_questions(config, number)

    def kill_engine(run: KilledRun) -> None:
        engines = [
            process
            for worker in run.find_workers()
            for process in descendants(worker)
            if "EngineCore" in title(process)
        ]
        assert engines, run.notes
        for process in engines:
            process.kill()
        assert psutil.wait_procs(engines, timeout=60.0)[1] == []

    def committed() -> int:
        return sum(load_commit(path).num_rows for path in _commit_paths(config))

    run = KilledRun(config, committed, "ShardWorker", {"engine": kill_engine})
    with _ended(run):
        run.soak({"driver": 0.2, "worker": 0.4, "engine": 0.4}, (1, 40), VLLM_KILLS)
        store = run.finish("open teacher, vLLM")
    _assert_each_row_once(store, config, number, run.notes)
