"""kill -9 at random times, over and over: every resume works, and the end is byte-equal."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raystill.checkpoint.store import latest_valid

NUM_KILLS = int(os.environ.get("RAYSTILL_SOAK_KILLS", "50"))
RUN_IN_CHILD = """
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


@pytest.mark.soak
def test_random_kills_never_stop_a_resume_and_the_end_is_byte_equal(world: Any, tmp_path: Path) -> None:
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
            [sys.executable, "-c", RUN_IN_CHILD, str(file)],
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
