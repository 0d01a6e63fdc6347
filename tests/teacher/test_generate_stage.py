"""The stages on a real Ray: accounts, resume, rejects, scoring, a killed driver, a killed worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError, EnvironmentFault, RemoteError
from raystill.run.events import EventLog
from raystill.run.paths import RunPaths
from raystill.run.stage import StageContext, StageOutcome, execute
from raystill.store.reader import committed_keys, iter_tables, load_rows
from raystill.store.requests import load_requests
from raystill.store.store import TeacherStore, load_store
from raystill.store.verify import verify_store
from raystill.teacher.fake_engine import SECONDS_PER_ROW_VARIABLE
from raystill.teacher.generate_stage import GENERATE_STAGE
from raystill.teacher.preview import run_preview
from raystill.teacher.score_stage import SCORE_STAGE

MakeConfig = Callable[..., Config]
SavePrompts = Callable[..., RunPaths]
Event = dict[str, Any]
pytestmark = pytest.mark.ray


def run_generate(config: Config, events: list[Event] | None = None, *, fresh: bool = False) -> StageOutcome:
    paths = RunPaths.from_config(config)
    listen = None if events is None else events.append
    return execute(GENERATE_STAGE, config, paths, on_event=listen, fresh=fresh)


def all_keys(store: TeacherStore) -> list[str]:
    """Keys of all committed rows, with duplicates if there were any."""
    return [
        key
        for partition in range(store.num_partitions)
        for table in iter_tables(store, columns=("key",), partitions=(partition,))
        for key in table.column("key").to_pylist()
    ]


@pytest.mark.usefixtures("local_ray")
class TestOnOneRay:
    def test_every_prompt_gets_one_row(self, make_config: MakeConfig, save_prompt_table: SavePrompts) -> None:
        config = make_config(base={"output_path": None})
        paths = save_prompt_table(config, 200)
        events: list[Event] = []
        outcome = run_generate(config, events)
        counts = outcome.manifest.counts
        assert counts["requests"] == counts["done"] == 200
        assert counts["rejected"] == counts["reused"] == 0
        rows = load_rows(load_store(paths.store), with_signal=True)
        assert len({row.prompt_id for row in rows}) == 200
        assert counts["completion_tokens"] == sum(len(row.completion_token_ids) for row in rows)
        report = verify_store(paths.store)
        assert report.ok
        assert (report.num_rows, report.num_duplicates, report.uncommitted) == (200, 0, ())
        assert Counter(row.split for row in rows) == {"train": 180, "eval": 20}
        assert all(row.signal is not None and row.signal.num_logprobs == 8 for row in rows)
        exported = [json.loads(line) for line in paths.teacher_jsonl.read_text().splitlines()]
        assert len(exported) == 200
        progress = [event for event in events if event["event"] == "progress"]
        assert progress[-1]["done"] == progress[-1]["total"] == 200
        assert not list(paths.stage_dir("generate").glob(".tmp-*"))

    def test_a_pool_that_grows_makes_every_sample_once(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        vllm = {"num_engines": [1, 2]}
        config = make_config(base={"num_samples": 3}, vllm=vllm)
        paths = save_prompt_table(config, 50)
        manifest = run_generate(config).manifest
        assert manifest.counts["requests"] == manifest.counts["done"] == 5 + 45 * 3
        rows = load_rows(load_store(paths.store))
        samples = Counter((row.prompt_id, row.sample_index) for row in rows)
        assert set(samples.values()) == {1}
        assert Counter(row.sample_index for row in rows) == {0: 50, 1: 45, 2: 45}
        train = {tuple(row.completion_token_ids) for row in rows if row.prompt_id == "p00001"}
        assert len(train) == 3
        held_out = load_requests(paths.requests)
        assert {request.sample_index for request in held_out if request.split == "eval"} == {0}

    def test_a_preview_stores_real_rows(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        config = make_config()
        paths = save_prompt_table(config, 30)
        with EventLog(paths.run_log, "preview") as events:
            context = StageContext(config, paths, paths.stage_dir("generate"), {}, events)
            context.output.mkdir(parents=True)
            preview = run_preview(context, 4)
            again = run_preview(context, 4)
        assert len(preview.samples) == 4
        assert preview.left.requests == again.left.requests == 26
        assert (preview.num_reused, again.num_reused) == (0, 4)
        assert again.samples == preview.samples
        assert all(sample.completion_tokens > 0 and sample.prompt for sample in preview.samples)
        assert preview.left.completion_tokens > 0
        counts = run_generate(config).manifest.counts
        assert (counts["reused"], counts["done"]) == (4, 30)

    def test_added_prompts_are_all_that_is_generated_and_only_on_request(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        """F33."""
        config = make_config()
        save_prompt_table(config, 60)
        run_generate(config)
        paths = save_prompt_table(config, 90)
        before = {row.key: row.seconds for row in load_rows(load_store(paths.store))}
        with pytest.raises(ConfigError, match="input prepare: made from another version") as caught:
            run_generate(config)
        assert "--accept-new-data" in str(caught.value)
        counts = execute(GENERATE_STAGE, config, paths, accept_new_data=True).manifest.counts
        assert (counts["reused"], counts["done"]) == (60, 90)
        after = {row.key: row.seconds for row in load_rows(load_store(paths.store))}
        assert {key: after[key] for key in before} == before
        again = run_generate(config, fresh=True).manifest.counts
        assert (again["reused"], again["done"]) == (90, 90)

    def test_resume_false_starts_a_new_store_once(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        save_prompt_table(make_config(), 30)
        run_generate(make_config())
        config = make_config(pipeline={"resume": False})
        paths = RunPaths.from_config(config)
        counts = run_generate(config, fresh=True).manifest.counts
        assert counts["reused"] == 0
        assert len(list(paths.root.glob("teacher_store.old-*"))) == 1
        # The same stage, not finished: what the new store holds is kept.
        (paths.stage_dir("generate") / "manifest.json").unlink()
        assert run_generate(config).manifest.counts["reused"] == 30
        assert len(list(paths.root.glob("teacher_store.old-*"))) == 1

    def test_rows_that_do_not_fit_are_rejected_with_a_reason(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        config = make_config()
        paths = save_prompt_table(config, 40, long_every=4)
        manifest = run_generate(config).manifest
        assert manifest.counts["rejected"] == 10
        assert manifest.counts["done"] == 30
        assert manifest.metrics["rejects"] == {"prompt_too_long": 10}
        store = load_store(paths.store)
        rejects = [row for table in iter_tables(store, kind="rejects") for row in table.to_pylist()]
        assert {reject["code"] for reject in rejects} == {"prompt_too_long"}
        assert all("128" in reject["reason"] for reject in rejects)

    def test_truncation_keeps_the_end_and_says_so(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        config = make_config(tokenizer={"truncation": True})
        paths = save_prompt_table(config, 20, long_every=4)
        assert run_generate(config).manifest.counts["rejected"] == 0
        rows = load_rows(load_store(paths.store))
        cut = [row for row in rows if row.flags]
        assert {row.flags for row in cut} == {("truncated_prompt",)}
        assert len(cut) == 5
        whole = next(row for row in rows if not row.flags)
        assert all(len(row.prompt_token_ids) == 128 - 16 for row in cut)
        assert all(row.prompt_token_ids[-3:].tolist() == whole.prompt_token_ids[-3:].tolist() for row in cut)

    def test_text_first_then_scores(self, make_config: MakeConfig, save_prompt_table: SavePrompts) -> None:
        config = make_config("transformers", signals={"capture": "score"})
        paths = save_prompt_table(config, 24)
        run_generate(config)
        store = load_store(paths.store)
        assert all(row.signal is None for row in load_rows(store))
        manifest = execute(SCORE_STAGE, config, paths).manifest
        assert manifest.counts["scored"] == 24
        rows = load_rows(store, with_signal=True)
        assert all(row.signal is not None and row.signal.num_logprobs == 8 for row in rows)
        (paths.stage_dir("score") / "manifest.json").unlink()
        assert execute(SCORE_STAGE, config, paths).manifest.counts["scored"] == 0

    def test_another_teacher_is_refused(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        config = make_config()
        save_prompt_table(config, 10)
        run_generate(config)
        other = make_config(signals={"num_logprobs": 4})
        with pytest.raises(ConfigError, match="num_logprobs"):
            run_generate(other)
        with pytest.raises(DataError, match="another teacher"):
            run_generate(other, fresh=True)

    def test_what_a_worker_raises_arrives_as_it_was(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts, teacher_dir: Path, tmp_path: Path
    ) -> None:
        broken = Path(shutil.copytree(teacher_dir, tmp_path / "broken"))
        facts = json.loads((broken / "config.json").read_text())
        (broken / "config.json").write_text(json.dumps({**facts, "intermediate_size": 96}))
        config = make_config("transformers", model=broken)
        save_prompt_table(config, 10)
        with pytest.raises(EnvironmentFault, match="could not load the teacher"):
            run_generate(config)

    def test_a_dead_ray_is_said_with_its_exit_code_and_the_stage_goes_on(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        """F3: with the raylet of a Ray that the driver has started."""
        config = make_config()
        paths = save_prompt_table(config, 600)
        driver = spawn_driver(config, **{SECONDS_PER_ROW_VARIABLE: "2"})
        before = wait_for_rows(paths, 1, driver)
        family = psutil.Process(driver.pid).children(recursive=True)
        (raylet,) = [process for process in family if process.name() == "raylet"]
        raylet.kill()
        code = driver.wait(timeout=300)
        said = (Path(config.run.dir) / "driver.log").read_text()
        assert code == RemoteError.exit_code, said[-4000:]
        assert "Ray died: its process raylet" in said and "run the same command again" in said
        assert psutil.wait_procs(family, timeout=300)[1] == []
        manifest = run_generate(config).manifest
        assert manifest.counts["done"] == 600 and manifest.counts["reused"] >= len(before)
        report = verify_store(paths.store)
        assert report.ok and report.num_duplicates == 0


def spawn_driver(config: Config, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(Path(__file__).with_name("killed_driver.py")), config.model_dump_json()]
    # A file and not a pipe: a driver that is killed leaves processes behind that hold its end open.
    said = Path(config.run.dir) / "driver.log"
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("wb") as stream:
        return subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=stream
        )


def wait_for_rows(paths: RunPaths, number: int, driver: subprocess.Popen[bytes]) -> set[str]:
    """Wait until `number` rows are committed, while the driver lives; returns their keys."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the driver ended before it could be killed"
        if (paths.store / "store.json").exists():
            store = load_store(paths.store)
            keys = set().union(*(committed_keys(store, part) for part in range(store.num_partitions)))
            if len(keys) >= number:
                return keys
        time.sleep(0.1)
    raise AssertionError("no rows in five minutes")


def find_worker(driver: subprocess.Popen[bytes]) -> psutil.Process:
    """The actor's process; Ray puts the actor's class into its title while it works."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for process in psutil.Process(driver.pid).children(recursive=True):
            try:
                if "ShardWorker" in " ".join(process.cmdline()):
                    return process
            except psutil.Error:
                continue
    raise AssertionError("no worker process")


def test_a_killed_driver_and_a_killed_worker_lose_and_repeat_nothing(
    make_config: MakeConfig, save_prompt_table: SavePrompts
) -> None:
    """F1, F2: of an open teacher."""
    config = make_config()
    paths = save_prompt_table(config, 600)
    # Nothing may be complete before the kills: the first has 40 s for that, the second 15.
    driver = spawn_driver(config, **{SECONDS_PER_ROW_VARIABLE: "2"})
    before = wait_for_rows(paths, 1, driver)
    worker = find_worker(driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # Its Ray outlives it by seconds, in which the worker may still commit.
    assert psutil.wait_procs([worker], timeout=300)[1] == []
    deaths = {row.key: row.seconds for row in load_rows(load_store(paths.store))}
    assert before <= deaths.keys()
    assert len(deaths) < 600

    driver = spawn_driver(config, **{SECONDS_PER_ROW_VARIABLE: "0.8"})
    wait_for_rows(paths, len(deaths) + 1, driver)
    find_worker(driver).kill()
    assert driver.wait(timeout=600) == 0, (Path(config.run.dir) / "driver.log").read_text()[-4000:]

    store = load_store(paths.store)
    keys = all_keys(store)
    assert len(keys) == len(set(keys)) == 600
    rows = load_rows(store, with_signal=True)
    assert {row.prompt_id for row in rows} == {f"p{index:05d}" for index in range(600)}
    assert {row.key: row.seconds for row in rows if row.key in deaths} == deaths
    manifest = json.loads((paths.stage_dir("generate") / "manifest.json").read_text())
    assert manifest["counts"]["done"] == 600
    assert manifest["counts"]["reused"] == len(deaths)
