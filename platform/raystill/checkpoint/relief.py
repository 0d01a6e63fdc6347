"""Room for a checkpoint: what may go is let go in order, and where that isn't enough the save is refused."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.retention import apply_retention
from raystill.run.disk import has_room, require_space

_FIX = (
    "free some space, lower training.checkpoint_cleanup.max_checkpoints or move the run to a larger disk, "
    "then run again: it resumes"
)


def make_room(
    directory: Path, rules: RetentionRules, num_bytes: int, *, in_use: Collection[int] = ()
) -> tuple[int, ...]:
    """See to it that `num_bytes` fit below `directory`; returns the steps that had to go.

    First leftovers and what the rules let go anyway, then all recent checkpoints but the newest. Milestones,
    the best, pinned ones and those `in_use` stay. Raises EnvironmentFault where that isn't enough: what is on
    disk is a valid state to resume from. Call it while nothing else is being saved there.
    """
    gone: tuple[int, ...] = ()
    for rung in (rules, replace(rules, max_recent=1)):
        if has_room(directory, num_bytes) or not directory.is_dir():
            break
        gone += apply_retention(directory, rung, in_use=in_use).deleted
    require_space(directory, num_bytes, fix=_FIX)
    return gone
