"""Kills itself at every failpoint of saving and of retention. Run as a script; not a test module.

`python crash_saver.py DIRECTORY`: for every failpoint and pass, a forked child saves steps 1 to 3 below
DIRECTORY/<point>-<pass> (step 2 twice), keeping one besides milestones, and dies on the way. Prints one JSON
object: failpoint -> how many passes killed a child.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.retention import apply_retention
from raystill.checkpoint.store import save_checkpoint

FAILPOINTS = (
    "checkpoint:group_written",
    "publish_file:before_rename",
    "publish_file:after_rename",
    "publish_directory:before_rename",
    "publish_directory:after_rename",
    "retention:renamed",
)
STEPS = (1, 2, 2, 3)
RULES = RetentionRules(total_steps=400, max_recent=1, min_free_gb=0.0)


def child(directory: Path, failpoint: str) -> None:
    os.environ["RAYSTILL_FAILPOINT"] = failpoint
    for step in STEPS:
        weights = torch.full((64,), float(step))
        save_checkpoint(directory, step, tensors={"model": {"w": weights}}, state={"step": step})
        (directory / "progress").write_text(str(step), encoding="utf-8")  # what a caller thinks is safe
        apply_retention(directory, RULES, current=step)
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
