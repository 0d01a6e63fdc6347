"""Kills itself at every failpoint of a background save while training goes on. A script, not a test module.

`python crash_background.py DIRECTORY`: for every failpoint and pass, a forked child trains four steps, saves
each beside the next below DIRECTORY/<point>-<pass>, and dies on the way. Prints one JSON object: failpoint ->
how many passes killed a child.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from failpoint_passes import print_kills

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


def child(directory: Path) -> None:
    directory.mkdir(parents=True)
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    print_kills(FAILPOINTS, lambda label: child(root / label))
