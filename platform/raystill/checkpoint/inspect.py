"""What lies in a stage's checkpoint directory, for people: why each checkpoint is kept, and whether it is
sound."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.retention import preview_retention, read_held, size_bytes
from raystill.checkpoint.store import (
    STATE_NAME,
    load_checkpoint_manifest,
    step_of,
    verify_checkpoint,
    verify_weights,
)
from raystill.errors import DataError

RESUME_POINT = "resume point"
DELETED_NEXT = "goes with the next save"


@dataclass(frozen=True)
class CheckpointFacts:
    """A directory with a checkpoint's name. `damage` is None where it is sound as far as was looked.

    `reasons` says why retention keeps it, or that it doesn't.
    """

    step: int
    path: Path
    size_bytes: int
    reasons: tuple[str, ...]
    damage: str | None
    metrics: dict[str, float]


def read_total_steps(directory: Path) -> int:
    """The length of the run that saved into `directory`: what its newest readable checkpoint says, or 0."""
    for path in _named(directory, newest_first=True):
        try:
            return int(json.loads((path / STATE_NAME).read_text(encoding="utf-8"))["total_steps"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 0


def inspect_checkpoints(
    directory: Path, rules: RetentionRules, *, hashes: bool = False, strict: bool = False
) -> list[CheckpointFacts]:
    """Every directory in `directory` with a checkpoint's name, by step.

    Looks at manifests and sizes; with `hashes` at every byte, with `strict` also at every weight, which must
    be finite. Raises DataError for an unreadable list of pins.
    """
    held = read_held(directory, rules.metric)
    whole = [step for step, one in held.items() if one.is_whole]
    plan = preview_retention(directory, rules, current=max(whole, default=None))
    found: list[CheckpointFacts] = []
    for path in _named(directory):
        step = step_of(path)
        assert step is not None
        reasons = plan.reasons.get(step, (DELETED_NEXT,) if step in held else ())
        damage, metrics = _look(path, hashes or strict, strict), {}
        if damage is None:
            metrics = load_checkpoint_manifest(path).metrics
            reasons = tuple(reason for reason in reasons if reason != "newest")
        found.append(CheckpointFacts(step, path, size_bytes(path), reasons, damage, metrics))
    sound = [facts.step for facts in found if facts.damage is None]
    return [_mark(facts, bool(sound) and facts.step == max(sound)) for facts in found]


def _mark(facts: CheckpointFacts, is_resume_point: bool) -> CheckpointFacts:
    if not is_resume_point:
        return facts
    kept = tuple(reason for reason in facts.reasons if reason != DELETED_NEXT)
    return CheckpointFacts(
        facts.step, facts.path, facts.size_bytes, (*kept, RESUME_POINT), facts.damage, facts.metrics
    )


def _named(directory: Path, *, newest_first: bool = False) -> list[Path]:
    if not directory.is_dir():
        return []
    named = [(step, path) for path in directory.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(named, reverse=newest_first)]


def _look(path: Path, hashes: bool, strict: bool) -> str | None:
    """What is wrong with the checkpoint at `path`, or None."""
    try:
        if strict:
            verify_weights(path)
        elif hashes:
            verify_checkpoint(path)
        else:
            _check_sizes(path)
    except DataError as error:
        return error.what
    return None


def _check_sizes(path: Path) -> None:
    for name, record in load_checkpoint_manifest(path).files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != record.size_bytes:
            what = "is missing" if size is None else f"has {size:,} bytes instead of {record.size_bytes:,}"
            raise DataError(f"{name} of the checkpoint {what}", where=str(file))
