"""The peers of the cluster benchmark: drivers that use Ray for nothing but what is measured.

`python -m raystill.bench.cluster_sides tasks DONE NUMBER SECONDS` and `... train STEPS STORAGE` join the
cluster at RAY_ADDRESS. Nothing of raystill is imported: its libraries are no part of what Ray takes.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STEP_SECONDS = 0.02
_NUM_STEPS = 100_000


def run_tasks(done: Path, number: int, seconds: float) -> None:
    """`number` tasks of one CPU and some `seconds`, started again where they are lost, that write when they
    were done."""
    import ray

    _join()
    task: Any = ray.remote(num_cpus=1, max_retries=-1)(_sleep_and_say)
    ray.get([task.remote(str(done), seconds) for _ in range(number)])


def _sleep_and_say(done: str, seconds: float) -> None:
    time.sleep(seconds)
    with open(done, "a", encoding="utf-8") as stream:
        stream.write(f"{time.time()}\n")


def run_train(steps: Path, storage: Path) -> None:
    """A Ray Train worker that counts, and goes on where it was without having saved anything."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    _join()
    TorchTrainer(
        _count,
        train_loop_config={"steps": str(steps)},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name=f"count-{time.time():.0f}",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=-1),
        ),
    ).fit()


def _count(settings: dict[str, str]) -> None:
    steps = Path(settings["steps"])
    done = steps.read_text(encoding="utf-8").splitlines() if steps.exists() else []
    first = max((int(json.loads(line)["step"]) for line in done if line.endswith("}")), default=0) + 1
    for step in range(first, _NUM_STEPS):
        time.sleep(_STEP_SECONDS)
        with steps.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step}) + "\n")


def _join() -> None:
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)


SIDES: dict[str, Callable[..., None]] = {
    "tasks": lambda done, number, seconds: run_tasks(Path(done), int(number), float(seconds)),
    "train": lambda steps, storage: run_train(Path(steps), Path(storage)),
}

if __name__ == "__main__":
    # Workers import this module by its name, which `__main__` isn't.
    from raystill.bench import cluster_sides

    side, *arguments = sys.argv[1:]
    cluster_sides.SIDES[side](*arguments)
