"""Pins: checkpoints that a user wants to keep. A small file beside the checkpoints says which."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raystill.checkpoint.store import step_directory, verify_checkpoint
from raystill.errors import DataError
from raystill.run.publish import write_json

PINS_NAME = "pins.json"
SCHEMA_VERSION = 1


class _Pins(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = Field(SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    steps: tuple[int, ...] = ()


def load_pins(directory: Path) -> frozenset[int]:
    """The pinned steps of `directory`. Raises DataError for an unreadable list."""
    path = directory / PINS_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return frozenset()
    try:
        return frozenset(_Pins.model_validate_json(raw).steps)
    except ValidationError as error:
        raise DataError(
            "the list of pinned checkpoints is unreadable, so nothing is deleted",
            where=str(path),
            fix="remove the file and pin again with `raystill checkpoints pin`",
        ) from error


def pin(directory: Path, step: int) -> bool:
    """Pin the checkpoint of `step`; returns whether it wasn't pinned before.

    Raises DataError where that checkpoint is missing or damaged.
    """
    path = step_directory(directory, step)
    if not path.is_dir():
        raise DataError(
            f"there is no checkpoint of step {step}", where=str(directory), fix="raystill checkpoints ls RUN"
        )
    verify_checkpoint(path)
    return _save(directory, load_pins(directory) | {step})


def unpin(directory: Path, step: int) -> bool:
    """Let retention decide about `step` again; returns whether it was pinned."""
    return _save(directory, load_pins(directory) - {step})


def _save(directory: Path, steps: frozenset[int]) -> bool:
    if steps == load_pins(directory):
        return False
    write_json(directory / PINS_NAME, _Pins(steps=tuple(sorted(steps))).model_dump(mode="json"))
    return True
