"""Kills itself at every failpoint of saving and of retention. Run as a script; not a test module.

`python crash_saver.py DIRECTORY`: for every failpoint and pass, a forked child saves steps 1 to 3 below
DIRECTORY/<point>-<pass> (step 2 twice), keeping one besides milestones, and dies on the way. Prints one JSON
object: failpoint -> how many passes killed a child.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from failpoint_passes import print_kills

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


def child(directory: Path) -> None:
    directory.mkdir(parents=True)
    for step in STEPS:
        weights = torch.full((64,), float(step))
        save_checkpoint(directory, step, tensors={"model": {"w": weights}}, state={"step": step})
        (directory / "progress").write_text(str(step), encoding="utf-8")  # what a caller thinks is safe
        apply_retention(directory, RULES, current=step)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    print_kills(FAILPOINTS, lambda label: child(root / label))
