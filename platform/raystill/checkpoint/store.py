"""Checkpoints: published whole or not at all, verified before they are trusted.

    checkpoints/
      step-00000042/
        model.safetensors  optimizer.safetensors  ...   one file per group of tensors, or several (`parts`)
        state.json                                      everything that is not a tensor
        manifest.json                                   step, sizes and sha256 of the files above

A name that parses as a step proves nothing: only a directory whose manifest verifies is a checkpoint.

Checkpoints of older schemas are read where they lie; who reads the state fills in what they lack
(`train.old_state`), and the next save is of this schema. Version 1 had the sums of the open window as a list;
version 2 had every group in one file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raystill.checkpoint.parts import (
    GroupReader,
    TensorGroups,
    open_group,
    part_names,
    refuse_shared,
    unreadable_groups,
    write_part,
)
from raystill.errors import DataError
from raystill.run.manifest import FileRecord, record_files
from raystill.run.publish import publish_directory, sha256_file, write_json

if TYPE_CHECKING:  # who only looks for checkpoints needs no torch
    import torch

SCHEMA_VERSION = 3
OLDEST_SCHEMA_VERSION = 1
_STEP_NAME = re.compile(r"^step-([0-9]{8,})$")
_GROUP_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
STATE_NAME = "state.json"
MANIFEST_NAME = "manifest.json"
DELETE_FIX = "delete this checkpoint; training resumes from the one before it"

# Takes what the other workers of a cut model have written into a directory; returns their files' records.
TakeParts = Callable[[Path], Mapping[str, FileRecord]]


class CheckpointManifest(BaseModel):
    """What a checkpoint directory must hold; `metrics` are what was measured at its step, if anything.

    `num_parts` is the number of files of each group: how many workers held parts of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    step: int = Field(ge=0)
    groups: tuple[str, ...]
    num_parts: int = Field(1, ge=1)
    files: dict[str, FileRecord]
    metrics: dict[str, float] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(record.size_bytes for record in self.files.values())


@dataclass(frozen=True)
class CheckpointContent:
    """A loaded checkpoint: tensors by group and name, on the CPU, and the JSON state, both as the program of
    `schema_version` wrote them."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint to read from: tensors by group, each read when it is asked for; the rest as in
    `CheckpointContent`."""

    path: Path
    step: int
    groups: Mapping[str, GroupReader]
    state: dict[str, Any]
    schema_version: int


@dataclass(frozen=True)
class LatestCheckpoint:
    """The newest checkpoint that verifies, or None; and why newer ones were passed over."""

    path: Path | None
    step: int | None
    passed_over: tuple[tuple[Path, str], ...] = ()


def step_directory(directory: Path, step: int) -> Path:
    """Path of the checkpoint of `step`."""
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that a directory's name claims, or None for a foreign name."""
    found = _STEP_NAME.match(path.name)
    return int(found.group(1)) if found else None


def save_checkpoint(
    directory: Path,
    step: int,
    *,
    tensors: TensorGroups,
    state: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    num_parts: int = 1,
    take_parts: TakeParts | None = None,
) -> Path:
    """Publish the checkpoint of `step` below `directory`; returns its path. Writes every tensor once.

    `tensors` maps group ("model", "optimizer") to name to tensor, of any dtype and shape; `state` is
    JSON-able; of `metrics` the finite numbers go into the manifest. Where workers hold parts of the tensors,
    these are the first one's, and `take_parts` brings the files of the `num_parts` - 1 others. Raises
    DataError for two names of one tensor (save a tied tensor once), EnvironmentFault for a full disk.
    """
    for group, named in tensors.items():
        if not _GROUP_NAME.match(group) or group in {"state", "manifest"}:
            raise DataError(f"{group!r} can't name a group of tensors", where="checkpoint")
        refuse_shared(group, named)
    path = step_directory(directory, step)
    with publish_directory(path) as temporary:
        written = write_part(temporary, tensors, 0, num_parts)
        write_json(temporary / STATE_NAME, dict(state))
        written.append(temporary / STATE_NAME)
        records = record_files(temporary, written)
        if take_parts is not None:
            records |= take_parts(temporary)
        manifest = CheckpointManifest(
            step=step,
            groups=tuple(tensors),
            num_parts=num_parts,
            files=records,
            metrics=_finite_numbers(metrics or {}),
        )
        write_json(temporary / MANIFEST_NAME, manifest.model_dump(mode="json"))
    return path


def list_checkpoints(directory: Path) -> list[Path]:
    """Directories with a checkpoint's name and a manifest, by ascending step. Content is not verified."""
    if not directory.is_dir():
        return []
    found = [(step_of(path), path) for path in directory.iterdir() if (path / MANIFEST_NAME).is_file()]
    return [path for _, path in sorted((step, path) for step, path in found if step is not None)]


def verify_checkpoint(path: Path) -> CheckpointManifest:
    """The manifest of a checkpoint whose files are all there and unchanged. Raises DataError naming one."""
    manifest = load_checkpoint_manifest(path)
    verify_content(path, manifest)
    return manifest


def is_whole(path: Path, manifest: CheckpointManifest) -> bool:
    """The cheap look: every file is there and has its size."""
    for name, record in manifest.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != record.size_bytes:
            return False
    return True


def verify_content(
    path: Path, manifest: CheckpointManifest, *, reader: int = 0, num_readers: int = 1
) -> None:
    """Compare the files below `path` with a manifest. Raises DataError naming one that differs.

    Of `num_readers` who do it together each reads other files; about as many bytes each where it can be.
    """
    by_size = sorted(manifest.files.items(), key=lambda item: (-item[1].size_bytes, item[0]))
    for name, record in by_size[reader::num_readers]:
        file = path / name
        if not file.is_file():
            raise _damaged(file, "it is missing")
        if file.stat().st_size != record.size_bytes:
            raise _damaged(file, f"it has {file.stat().st_size:,} bytes instead of {record.size_bytes:,}")
        if sha256_file(file) != record.sha256:
            raise _damaged(file, "its content has changed")


def load_checkpoint_manifest(path: Path) -> CheckpointManifest:
    """A checkpoint's manifest, checked against its directory's name. Raises DataError."""
    file = path / MANIFEST_NAME
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise _damaged(file, "it can't be read") from error
    return parse_manifest(raw, step_of(path), file)


def parse_manifest(raw: bytes, step: int | None, file: Path) -> CheckpointManifest:
    """The manifest of the checkpoint of `step`, from the bytes at `file`. Raises DataError."""
    try:
        manifest = CheckpointManifest.model_validate_json(raw)
    except ValidationError as error:
        raise _damaged(file, _why_unreadable(raw)) from error
    expected = {name for group in manifest.groups for name in part_names(group, manifest.num_parts)}
    if not OLDEST_SCHEMA_VERSION <= manifest.schema_version <= SCHEMA_VERSION:
        raise _damaged(file, _why_unreadable(raw))
    if manifest.files.keys() != expected | {STATE_NAME}:
        raise _damaged(file, "it does not list the checkpoint's files")
    if manifest.step != step:
        raise _damaged(file, f"it is the manifest of step {manifest.step}")
    return manifest


def latest_valid(directory: Path) -> LatestCheckpoint:
    """The newest checkpoint that verifies. Newer ones that don't are passed over, each with the reason."""
    passed_over: list[tuple[Path, str]] = []
    for path in claimed_checkpoints(directory):
        try:
            manifest = verify_checkpoint(path)
        except DataError as error:
            passed_over.append((path, error.what))
            continue
        return LatestCheckpoint(path, manifest.step, tuple(passed_over))
    return LatestCheckpoint(None, None, tuple(passed_over))


def refuse_newer(paths: Iterable[Path]) -> None:
    """Raises DataError if one of `paths` is a checkpoint that a newer program saved, naming its version."""
    for path in paths:
        try:
            version = json.loads((path / MANIFEST_NAME).read_bytes()).get("schema_version")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(
                f"the checkpoints were saved by a newer program: schema version {version}, this one reads "
                f"{OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION}",
                where=str(path),
                fix="resume with that program, or start again with --fresh",
            )


@contextmanager
def open_checkpoint(path: Path) -> Iterator[OpenCheckpoint]:
    """The checkpoint at `path`, which has been verified, to read single tensors from, or parts of them.

    Raises DataError for a file that can't be read, now or in the body.
    """
    manifest = load_checkpoint_manifest(path)
    try:
        state = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path / STATE_NAME, "it can't be read") from error
    with unreadable_groups(path), ExitStack() as stack:
        groups = {
            group: stack.enter_context(open_group(path, group, manifest.num_parts))
            for group in manifest.groups
        }
        yield OpenCheckpoint(path, manifest.step, groups, state, manifest.schema_version)


def verify_weights(path: Path) -> None:
    """`verify_checkpoint`, and every weight is a number: one tensor in memory at a time. Raises DataError."""
    from raystill.checkpoint.finite import require_finite_weights

    verify_checkpoint(path)
    with open_checkpoint(path) as content:
        reader = content.groups.get("model")
        names = [] if reader is None else reader.names()
        weights = ((name, reader.tensor(name)) for name in names if reader is not None)
        require_finite_weights(weights, str(path), DELETE_FIX)


def load_checkpoint(path: Path) -> CheckpointContent:
    """Tensors and state of the checkpoint at `path`.

    Raises DataError for a damaged file and for model weights that are not finite, naming the tensor.
    """
    from raystill.checkpoint.finite import require_finite_weights

    verify_checkpoint(path)
    with open_checkpoint(path) as found:
        tensors = {
            group: {name: reader.tensor(name) for name in reader.names()}
            for group, reader in found.groups.items()
        }
    require_finite_weights(tensors.get("model", {}).items(), str(path), DELETE_FIX)
    return CheckpointContent(found.step, tensors, found.state, found.schema_version)


def _finite_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def claimed_checkpoints(directory: Path) -> list[Path]:
    """Everything in `directory` with a checkpoint's name, newest first, valid or not."""
    if not directory.is_dir():
        return []
    named = [(step_of(path), path) for path in directory.iterdir()]
    return [path for _, path in sorted(((s, p) for s, p in named if s is not None), reverse=True)]


def _why_unreadable(raw: bytes) -> str:
    try:
        version = json.loads(raw).get("schema_version")
    except (ValueError, AttributeError):
        return "it is not a manifest"
    if version not in range(OLDEST_SCHEMA_VERSION, SCHEMA_VERSION + 1):
        readable = f"{OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION}"
        return f"its schema version is {version!r}, this program reads {readable}"
    return "it is not a manifest"


def _damaged(file: Path, why: str) -> DataError:
    return DataError(
        f"{file.name} of the checkpoint can't be used: {why}",
        where=str(file),
        fix="resume from an older checkpoint, or restore the file from a copy",
    )
