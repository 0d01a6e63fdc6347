"""Kills itself at every failpoint of a background save while training goes on. A script, not a test module.

`python crash_background.py DIRECTORY`: for every failpoint and pass, a forked child trains four steps, saves
each beside the next below DIRECTORY/<point>-<pass>, and dies on the way. Prints one JSON object: failpoint ->
how many passes killed a child.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from raystill.checkpoint.background import BackgroundWriter
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.retention import apply_retention
from raystill.checkpoint.store import save_checkpoint

FAILPOINTS = (
    "checkpoint:copied",
    "checkpoint:group_written",
    "publish_directory:before_rename",
    "retention:renamed",
)
RULES = RetentionRules(total_steps=4000, max_recent=1, min_free_gb=0.0)


def child(directory: Path, failpoint: str) -> None:
    os.environ["RAYSTILL_FAILPOINT"] = failpoint
    writer = BackgroundWriter()
    weights, moments = torch.zeros(20_000), torch.zeros(20_000)
    for step in range(1, 5):
        writer.wait_copied()
        weights += 1
        moments += 1

        def publish(copies: Any, step: int = step) -> Path:
            path = save_checkpoint(directory, step, tensors=copies, state={"step": step})
            (directory / "progress").write_text(str(step), encoding="utf-8")
            apply_retention(directory, RULES, current=step)
            return path

        writer.submit({"model": {"w": weights}, "optimizer": {"m": moments}}, publish)
    writer.flush()
    os._exit(0)


def main(directory: Path) -> None:
    killed = {}
    for name in FAILPOINTS:
        passes = 0
        while True:
            place = directory / f"{name.replace(':', '-')}-{passes + 1}"
            place.mkdir(parents=True)
            pid = os.fork()
            if pid == 0:
                child(place, f"{name}:{passes + 1}")
            _, status = os.waitpid(pid, 0)
            if not os.WIFSIGNALED(status):
                break
            passes += 1
        killed[name] = passes
    print(json.dumps(killed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
