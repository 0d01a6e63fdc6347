"""kill -9 at random times, over and over: every resume works, and the end is byte-equal."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raystill.checkpoint.inspect import inspect_checkpoints
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.store import latest_valid
from raystill.run.manifest import Manifest, load_manifest, save_manifest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3 * 3600)]
NUM_KILLS = int(os.environ.get("RAYSTILL_SOAK_KILLS", "50"))
# Long on purpose: a driver's start takes half a minute on a busy machine.
WAIT_SECONDS = 400
LOOP_IN_CHILD = """
import sys
from pathlib import Path
from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.worker import train_worker

class Silent:
    def report(self, step, metrics): pass

config = Config.model_validate_json(Path(sys.argv[1]).read_text())
print("ready", flush=True)
train_worker(TrainJob(config, RunPaths.from_config(config), "distill", "cpu", 1), WorkerGroup(), Silent())
"""
STAGE_IN_CHILD = """
import sys
from pathlib import Path
from raystill.cluster.ray_session import ray_session
from raystill.config.schema import Config
from raystill.errors import RaystillError
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.train.stage import DISTILL_STAGE

config = Config.model_validate_json(Path(sys.argv[1]).read_text())
try:
    with ray_session(config):
        execute(DISTILL_STAGE, config, RunPaths.from_config(config))
except RaystillError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
# What a process of Ray Train calls itself; the driver is the child that this test starts.
VICTIMS = {"driver": "", "controller": "TrainController", "worker": "RayTrainWorker"}


def test_random_kills_never_stop_a_resume_and_the_end_is_byte_equal(world: Any, tmp_path: Path) -> None:
    """F25."""
    steps = {"steps": 1000, "save_every": 1, "checkpoint_cleanup": {"max_checkpoints": 2}}
    whole, killed = world.config("whole", training=steps), world.config("killed", training=steps)
    world.train(whole)
    world.list_requests(world.paths(killed))
    file = tmp_path / "config.json"
    file.write_text(killed.model_dump_json())
    random_ = random.Random(0)
    directory = world.paths(killed).checkpoints("distill")
    reached, seconds = 0, []
    for _ in range(NUM_KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", LOOP_IN_CHILD, str(file)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        child.stdout.readline()
        started = time.monotonic()
        while (latest_valid(directory).step or 0) <= reached and child.poll() is None:
            time.sleep(0.05)
        seconds.append(time.monotonic() - started)
        time.sleep(random_.uniform(0.0, 0.5))
        child.kill()
        if child.wait() == 0:
            break
        found = latest_valid(directory)
        assert found.passed_over == () and (found.step or 0) >= reached
        reached = found.step or 0
    world.train(killed)
    assert world.weights(killed) == world.weights(whole)
    print(f"from start to the next saved step: {sorted(seconds)[len(seconds) // 2]:.2f} s (median)")


@pytest.fixture
def ray_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray that outlives the drivers that join it."""
    import ray

    from raystill.cluster.ray_session import ray_session
    from raystill.config.schema import Config

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(Config()):
        yield ray.get_runtime_context().gcs_address


@pytest.mark.ray
def test_driver_controller_and_worker_are_killed_and_the_end_is_byte_equal(
    world: Any, ray_address: str, tmp_path: Path
) -> None:
    """F25: the stage as a driver of its own runs it; every kill takes one of its three kinds of process, and
    only a worker's leaves the driver alive."""
    cleanup = {"max_checkpoints": 2, "min_free_space_gb": 0.0}
    # Ray Train takes a report every 0.2 s, and every save is one: ten steps a second at most.
    steps = {"steps": 60 * NUM_KILLS, "save_every": 2, "checkpoint_cleanup": cleanup}
    whole, killed = world.config("whole", training=steps), world.config("killed", training=steps)
    world.train(whole)
    paths = world.paths(killed)
    for stage in ("generate", "score"):
        save_manifest(paths.stage_dir(stage), Manifest(stage=stage, fingerprint=stage, config={}, inputs={}))
    world.list_requests(paths)
    file = tmp_path / "config.json"
    file.write_text(killed.model_dump_json())
    random_ = random.Random(0)
    hit: Counter[str] = Counter()
    reached, seconds, code = 0, [], None
    while hit.total() < NUM_KILLS and code != 0:
        wait_until_gone()  # a process of the driver before would be taken for one of the next
        earlier, code = set[int](), None
        with driver(file, ray_address, tmp_path / "driver.log") as child:
            while hit.total() < NUM_KILLS and code is None:
                victim = sorted(VICTIMS)[hit.total() % len(VICTIMS)]
                started = time.monotonic()
                # Every other kill comes before the attempt has saved anything: while it starts, or resumes.
                # Not a worker's: Ray starts another in the place of one that dies before it trains.
                if hit.total() % 2 or victim == "worker":
                    wait_for_step(paths, reached, child)
                    seconds.append(time.monotonic() - started)
                target = find_victim(victim, child, earlier)
                time.sleep(random_.uniform(0.0, 1.5))
                before = list_processes()
                with contextlib.suppress(psutil.NoSuchProcess):
                    if target is not None:
                        target.kill()
                reached = found_whole(paths, reached)
                if victim == "worker":  # its driver has another group go on, for on a cluster nodes may go
                    wait_for_step(paths, reached, child)
                    earlier, code = before, child.poll()
                    assert code in (None, 0), (tmp_path / "driver.log").read_text()
                else:
                    code = child.wait(timeout=WAIT_SECONDS)
                    expected = -9 if victim == "driver" else 4
                    assert code in (0, expected), (victim, (tmp_path / "driver.log").read_text())
                reached = found_whole(paths, reached)
                if code != 0:  # else it was faster than the kill
                    hit[victim] += 1
    assert hit.keys() == VICTIMS.keys() or len(VICTIMS) > NUM_KILLS, hit
    if load_manifest(paths.stage_dir("distill")) is None:
        with driver(file, ray_address, tmp_path / "driver.log") as child:
            assert child.wait(timeout=WAIT_SECONDS * 10) == 0, (tmp_path / "driver.log").read_text()
    assert world.weights(killed) == world.weights(whole)
    rules = RetentionRules.from_config(killed, 60 * NUM_KILLS)
    kept = inspect_checkpoints(paths.checkpoints("distill"), rules, strict=True)
    assert [facts.damage for facts in kept] == [None] * len(kept)
    middle = sorted(seconds)[len(seconds) // 2] if seconds else 0.0
    print(f"{dict(hit)}; from a driver's start to its next saved step: {middle:.1f} s (median)")


@contextlib.contextmanager
def driver(config: Path, address: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The stage in a process of its own, which is gone when the body ends."""
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-c", STAGE_IN_CHILD, str(config)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": address},
            stdout=stream,
            stderr=stream,
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def found_whole(paths: Any, reached: int) -> int:
    """The step of the newest checkpoint: nothing newer is damaged, and none is lost.

    Training that goes on may let one go while it is looked at; damage stays.
    """
    found = latest_valid(paths.checkpoints("distill"))
    for _ in range(20):
        if found.passed_over == ():
            break
        time.sleep(0.2)
        found = latest_valid(paths.checkpoints("distill"))
    assert found.passed_over == () and (found.step or 0) >= reached
    return found.step or 0


def wait_until_gone() -> None:
    """Ray ends what a dead driver has left, and what was starting for it: until none is seen for 2 s."""
    deadline, quiet = time.monotonic() + WAIT_SECONDS, 0
    while quiet < 20:
        assert time.monotonic() < deadline, "Ray doesn't end what a dead driver has left"
        quiet = 0 if list_processes() else quiet + 1
        time.sleep(0.1)


def list_processes() -> set[int]:
    """The processes of every kind that are there now."""
    return {process.pid for name in VICTIMS for process in find_processes(name)}


def find_processes(name: str) -> list[psutil.Process]:
    """The processes of that kind below this one."""
    found = []
    for process in psutil.Process().children(recursive=True) if name != "driver" else ():
        with contextlib.suppress(psutil.Error):
            if VICTIMS[name] in " ".join(process.cmdline()):
                found.append(process)
    return found


def find_victim(
    name: str, child: subprocess.Popen[bytes], earlier: set[int]
) -> psutil.Process | subprocess.Popen[bytes] | None:
    """A process of that kind that wasn't there `earlier`, once there is one; None where the driver ended."""
    if name == "driver":
        return child
    deadline = time.monotonic() + WAIT_SECONDS
    while child.poll() is None:
        found = [process for process in find_processes(name) if process.pid not in earlier]
        if found:
            return found[0]
        assert time.monotonic() < deadline, f"no {name} was started"
        time.sleep(0.05)
    return None


def wait_for_step(paths: Any, reached: int, child: subprocess.Popen[bytes]) -> None:
    """Return when a later step than `reached` is saved, or the driver has ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (latest_valid(paths.checkpoints("distill")).step or 0) <= reached and child.poll() is None:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.1)
