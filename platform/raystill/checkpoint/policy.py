"""Which checkpoints stay: the decision alone. Pure, and it knows only what is on disk, so it holds across
restarts, stages and changed settings.

Kept: the milestones at 10, 25, 50, 75, 90 and 100 % of the steps; besides them the `max_recent` most recent
ones (a milestone takes no slot); the `keep_best` best ones by a metric; pinned ones; the one being saved and
every one in use. Where less than `min_free_gb` is free, the oldest recent ones go one by one, until the disk
has some slack again (`RELIEF`) or one is left.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from raystill.config.schema import Config

MILESTONE_PERCENTS = (10, 25, 50, 75, 90, 100)
# Under pressure, room is made up to this multiple of the limit: the count does not swing with every save.
RELIEF = 1.2


@dataclass(frozen=True)
class RetentionRules:
    """What the user promised to keep. Sizes in GiB; `mode` says which end of `metric` is the best."""

    total_steps: int
    max_recent: int
    min_free_gb: float
    keep_best: int = 0
    metric: str = "eval/loss"
    mode: Literal["min", "max"] = "min"

    @classmethod
    def from_config(cls, config: Config, total_steps: int) -> RetentionRules:
        """The rules of `training.checkpoint_cleanup` for a stage of `total_steps`."""
        cleanup = config.training.checkpoint_cleanup
        return cls(
            total_steps=total_steps,
            max_recent=cleanup.max_checkpoints,
            min_free_gb=cleanup.min_free_space_gb,
            keep_best=cleanup.keep_best,
            metric=cleanup.metric,
            mode=cleanup.mode,
        )


@dataclass(frozen=True)
class Held:
    """A checkpoint on disk: its size and its value of the rules' metric, if it has one.

    `is_whole` is False for one that can't be resumed from: it takes no slot and stands for no milestone.
    """

    size_gb: float
    score: float | None = None
    is_whole: bool = True


@dataclass(frozen=True)
class RetentionPlan:
    """Steps to keep and steps to delete, oldest first; together they are what was on disk.

    `reasons` says of each kept step why; `recent_allowed` is what pressure left of `max_recent`.
    """

    keep: tuple[int, ...]
    delete: tuple[int, ...]
    reasons: Mapping[int, tuple[str, ...]]
    recent_allowed: int


def milestone_steps(total_steps: int) -> tuple[int, ...]:
    """The steps whose checkpoints stay for good: ceil(p * total_steps / 100), ascending, without repeats."""
    if total_steps <= 0:
        return ()
    return tuple(sorted({-(-total_steps * percent // 100) for percent in MILESTONE_PERCENTS}))


def plan_retention(
    on_disk: Mapping[int, Held],
    rules: RetentionRules,
    *,
    free_gb: float,
    current: int | None = None,
    in_use: Collection[int] = (),
    pinned: Collection[int] = (),
) -> RetentionPlan:
    """Decide what stays of the checkpoints on disk, keyed by step.

    `current` is the step that was just saved, `in_use` those that a resume or an evaluation reads. The first
    checkpoint at or after a milestone stands for it where there is none exactly there. Steps above `current`
    are leftovers of an abandoned continuation: they take no recent slot, and so do damaged ones.
    """
    alive = [s for s in sorted(on_disk) if on_disk[s].is_whole and (current is None or s <= current)]
    milestones = _milestones(alive, rules.total_steps)
    reasons: dict[int, list[str]] = {}
    for step, percents in milestones.items():
        reasons.setdefault(step, []).append("milestone " + ", ".join(f"{p} %" for p in percents))
    for place, step in enumerate(_best(alive, on_disk, rules), 1):
        reasons.setdefault(step, []).append(f"best {place} by {rules.metric}")
    named = ((pinned, "pinned"), (in_use, "in use"), ((current,) if current is not None else (), "newest"))
    for steps, reason in named:
        for step in steps:
            if step in on_disk:
                reasons.setdefault(step, []).append(reason)
    protected = set(reasons)
    recent = [step for step in alive if step not in milestones][-max(1, rules.max_recent) :]
    deleted = set(on_disk) - protected - set(recent)
    allowed = max(1, rules.max_recent)
    if free_gb < rules.min_free_gb:
        free_gb += math.fsum(on_disk[step].size_gb for step in deleted)
        while free_gb < rules.min_free_gb * RELIEF and len(recent) > 1:
            oldest = recent.pop(0)
            if oldest not in protected:
                deleted.add(oldest)
                free_gb += on_disk[oldest].size_gb
            allowed = len(recent)
    for step in recent:
        reasons.setdefault(step, []).append("recent")
    kept = tuple(step for step in sorted(on_disk) if step not in deleted)
    return RetentionPlan(
        keep=kept,
        delete=tuple(sorted(deleted)),
        reasons={step: tuple(reasons.get(step, ())) for step in kept},
        recent_allowed=allowed,
    )


def _milestones(alive: list[int], total_steps: int) -> dict[int, list[int]]:
    """The steps that stand for milestones, with their percents."""
    found: dict[int, list[int]] = {}
    for percent in MILESTONE_PERCENTS:
        wanted = -(-total_steps * percent // 100)
        standing = next((step for step in alive if step >= wanted), None) if total_steps > 0 else None
        if standing is not None:
            found.setdefault(standing, []).append(percent)
    return found


def _best(alive: list[int], on_disk: Mapping[int, Held], rules: RetentionRules) -> list[int]:
    """The best steps by the metric, best first; of equals the earlier, so that a plateau moves nothing."""
    sign = 1 if rules.mode == "min" else -1
    scored = [
        (sign * score, step)
        for step in alive
        if (score := on_disk[step].score) is not None and math.isfinite(score)
    ]
    return [step for _, step in sorted(scored)[: rules.keep_best]]
