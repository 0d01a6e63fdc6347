"""Kills itself at every failpoint of copying to object storage. Run as a script; not a test module.

`python crash_copier.py ADDRESS DIRECTORY`: for every failpoint and pass, a forked child saves steps 1 and 2
below DIRECTORY/<point>-<pass> and has ADDRESS/<point>-<pass> follow, keeping one besides milestones, and dies
on the way. Prints one JSON object: failpoint -> how many passes killed a child.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import s3fs  # noqa: F401 (imported once, not by every child)
import torch
import upath  # noqa: F401
from failpoint_passes import print_kills

from raystill.checkpoint.copies import CheckpointCopies
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.retention import apply_retention
from raystill.checkpoint.store import save_checkpoint
from raystill.run.remote import open_place

FAILPOINTS = ("copies:file_uploaded", "copies:published", "copies:manifest_deleted")
RULES = RetentionRules(total_steps=400, max_recent=1, min_free_gb=0.0)


def child(address: str, directory: Path) -> None:
    directory.mkdir(parents=True)
    copies = CheckpointCopies(open_place(address), directory)
    for step in (1, 2):
        tensors = {"model": {"w": torch.full((8,), float(step))}}
        save_checkpoint(directory, step, tensors=tensors, state={"step": step})
        apply_retention(directory, RULES, current=step)
        copies.follow(RULES)
        (directory / "copied").write_text(str(step), encoding="utf-8")
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, root = sys.argv[1], Path(sys.argv[2])
    print_kills(FAILPOINTS, lambda label: child(f"{place}/{label}", root / label))
