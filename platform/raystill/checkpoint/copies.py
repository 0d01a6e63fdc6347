"""Copies of a stage's checkpoints on object storage, for runs whose machine may go away for good.

    s3://bucket/prefix/<run>/<stage>/
      origin.json           the settings that the stage was begun with
      pins.json             the user's pins, as beside the local checkpoints
      step-00000042/        the checkpoint's files; its manifest is put there last and deleted first

The local directory comes first: a checkpoint is published there and then copied from there, so nothing is
written twice to the disk. Here the same rules decide what stays, but for disk space, which storage has.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raystill.checkpoint.pins import PINS_NAME, load_pins
from raystill.checkpoint.policy import Held, RetentionRules, plan_retention
from raystill.checkpoint.store import (
    MANIFEST_NAME,
    CheckpointManifest,
    is_whole,
    latest_valid,
    list_checkpoints,
    load_checkpoint_manifest,
    parse_manifest,
    step_directory,
    step_of,
    verify_content,
)
from raystill.errors import ConfigError, DataError, RemoteError
from raystill.run.disk import require_space
from raystill.run.failpoint import failpoint
from raystill.run.paths import RunPaths, StageName
from raystill.run.publish import publish_directory, publish_file
from raystill.run.remote import (
    delete_object,
    delete_objects,
    download_file,
    list_folders,
    object_sizes,
    put_object,
    remote_faults,
    upload_file,
)
from raystill.run.stage import changed_keys

ORIGIN_NAME = "origin.json"
_PROBE_NAME = "probe"
_GIB = 2**30
_FRESH = (
    "restore the settings, choose another run.name, or start again with --fresh, which deletes the copies"
)


@dataclass(frozen=True)
class CopiesFacts:
    """What the storage has of a stage's checkpoints.

    `whole` steps have all their files, each of the size that its manifest says; `damaged` ones say why not;
    `missing` are the sound local checkpoints that have no whole copy, or that of another save of this step.
    """

    place: str
    size_bytes: int
    whole: tuple[int, ...]
    damaged: dict[int, str]
    missing: tuple[int, ...]


@dataclass
class CheckpointCopies:
    """The copies below `place` of the checkpoints in `directory`. One process at a time writes here.

    `origin` is the record of the settings that the stage was begun with, a local file, if it has one.
    Everything that asks the storage raises RemoteError where that refuses.
    """

    place: Path
    directory: Path
    origin: Path | None = None
    # Of the copies that are whole, and why others can't be used; both as of the last look.
    _manifests: dict[int, CheckpointManifest] = field(default_factory=dict)
    _unusable: dict[int, str] = field(default_factory=dict)
    _small: dict[str, bytes] = field(default_factory=dict)

    def follow(self, rules: RetentionRules) -> tuple[int, ...]:
        """Copy every sound local checkpoint that the storage lacks, then delete what `rules` let go there.

        Returns the steps that were copied. What an earlier process left half done goes, or is done again.
        """
        there = self._read_manifests()
        self._put_small(PINS_NAME, self.directory / PINS_NAME)
        if self.origin is not None:
            self._put_small(ORIGIN_NAME, self.origin)
        copied = []
        for path in list_checkpoints(self.directory):
            # A damaged one is no copy's source, nor one that somebody deletes meanwhile.
            with contextlib.suppress(DataError, FileNotFoundError):
                manifest = load_checkpoint_manifest(path)
                if there.get(manifest.step) != manifest and is_whole(path, manifest):
                    self._upload(path, manifest)
                    copied.append(manifest.step)
        self._let_go(rules)
        return tuple(copied)

    def fetch_newer(self) -> list[str]:
        """Bring the newest sound copy here where it is of a later step than all that is here.

        Returns what was passed over on the way, in words. Raises ConfigError where the copies were made with
        other settings than the stage has now, EnvironmentFault where the disk has no room.
        """
        local = latest_valid(self.directory).step
        there = self._read_manifests()
        newer = [step for step in there.keys() | self._unusable.keys() if local is None or step > local]
        if newer:
            self._refuse_other_settings()
        notes: list[str] = []
        for step in sorted(newer, reverse=True):
            try:
                self._download(step)
            except DataError as error:
                notes.append(f"the copy of step {step} was passed over: {error.what}")
                continue
            self._fetch_pins()
            break
        return notes

    def inspect(self) -> CopiesFacts:
        """Look at every copy: manifests and listed sizes, no content. Reads nothing but small files."""
        there = self._read_manifests()
        damaged = dict(self._unusable)
        for step in self._steps() - there.keys() - damaged.keys():
            damaged[step] = "its upload did not end"
        for step, manifest in there.items():
            if short := _incomplete(manifest, object_sizes(step_directory(self.place, step))):
                damaged[step] = f"{short[0]} is missing or has another size"
        whole = {step: manifest for step, manifest in there.items() if step not in damaged}
        missing = []
        for path in list_checkpoints(self.directory):
            with contextlib.suppress(DataError):
                manifest = load_checkpoint_manifest(path)
                if is_whole(path, manifest) and whole.get(manifest.step) != manifest:
                    missing.append(manifest.step)
        return CopiesFacts(
            place=str(self.place),
            size_bytes=sum(manifest.size_bytes for manifest in whole.values()),
            whole=tuple(sorted(whole)),
            damaged=dict(sorted(damaged.items())),
            missing=tuple(missing),
        )

    def discard(self) -> None:
        """Delete every copy."""
        for step in self._steps():
            self._delete(step)
        for name in (PINS_NAME, ORIGIN_NAME):
            delete_object(self.place / name)

    def _steps(self) -> set[int]:
        """Steps that have a folder, whole or not."""
        return {step for name in list_folders(self.place) if (step := step_of(Path(name))) is not None}

    def _read_manifests(self) -> dict[int, CheckpointManifest]:
        """The manifests of all copies that are whole, by step; read once, and then only what is new."""
        steps = self._steps()
        self._manifests = {step: one for step, one in self._manifests.items() if step in steps}
        self._unusable = {}
        for step in sorted(steps - self._manifests.keys()):
            path = step_directory(self.place, step) / MANIFEST_NAME
            try:
                with remote_faults(path):
                    raw = path.read_bytes()
                self._manifests[step] = parse_manifest(raw, step, path)
            except FileNotFoundError:
                continue
            except DataError as error:
                self._unusable[step] = error.what
        return self._manifests

    def _upload(self, path: Path, manifest: CheckpointManifest) -> None:
        target = step_directory(self.place, manifest.step)
        self._delete(manifest.step)  # half a copy, or one of another checkpoint of this step
        for name in manifest.files:
            upload_file(path / name, target / name)
            failpoint("copies:file_uploaded")
        if short := _incomplete(manifest, object_sizes(target)):
            raise RemoteError(
                f"{short[0]} did not arrive whole", where=str(target), fix="run again: it is copied again"
            )
        put_object(target / MANIFEST_NAME, (path / MANIFEST_NAME).read_bytes(), if_absent=False)
        failpoint("copies:published")
        self._manifests[manifest.step] = manifest

    def _download(self, step: int) -> None:
        if step in self._unusable:
            raise DataError(self._unusable[step], where=str(self.place))
        manifest = self._manifests[step]
        source, target = step_directory(self.place, step), step_directory(self.directory, step)
        require_space(self.directory, manifest.size_bytes)
        with publish_directory(target) as temporary:
            for name in (*manifest.files, MANIFEST_NAME):
                try:
                    download_file(source / name, temporary / name)
                except FileNotFoundError as error:
                    raise DataError(f"{name} is missing", where=str(source)) from error
            verify_content(temporary, manifest)

    def _let_go(self, rules: RetentionRules) -> None:
        held = {
            step: Held(manifest.size_bytes / _GIB, manifest.metrics.get(rules.metric))
            for step, manifest in self._manifests.items()
        }
        local = [step_of(path) for path in list_checkpoints(self.directory)]
        current = max((step for step in local if step is not None), default=None)
        plan = plan_retention(
            held, rules, free_gb=math.inf, current=current, pinned=load_pins(self.directory)
        )
        for step in plan.delete:
            self._delete(step)
        for step in self._steps() - self._manifests.keys() - self._unusable.keys():
            self._delete(step)  # half a copy, and no local checkpoint is the whole of it

    def _delete(self, step: int) -> None:
        self._manifests.pop(step, None)
        folder = step_directory(self.place, step)
        delete_object(folder / MANIFEST_NAME)
        failpoint("copies:manifest_deleted")
        delete_objects(folder)

    def _put_small(self, name: str, source: Path) -> None:
        """Copy a small file that may change, where it has; one that is gone is deleted."""
        content = source.read_bytes() if source.is_file() else b""
        if self._small.get(name) == content:
            return
        if content:
            put_object(self.place / name, content, if_absent=False)
        else:
            delete_object(self.place / name)
        self._small[name] = content

    def _fetch_pins(self) -> None:
        pins = self.directory / PINS_NAME
        if pins.exists():
            return
        with contextlib.suppress(FileNotFoundError), publish_file(pins) as temporary:
            download_file(self.place / PINS_NAME, temporary)

    def _refuse_other_settings(self) -> None:
        if self.origin is None or not self.origin.is_file():
            return
        path = self.place / ORIGIN_NAME
        try:
            with remote_faults(path):
                recorded = json.loads(path.read_bytes())["config"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return
        current: dict[str, Any] = json.loads(self.origin.read_text(encoding="utf-8"))["config"]
        different = changed_keys(recorded, current)
        if different:
            raise ConfigError(
                "the copies of the checkpoints were made with other settings:\n    "
                + "\n    ".join(different),
                where=str(self.place),
                fix=_FRESH,
            )


def _incomplete(manifest: CheckpointManifest, sizes: Mapping[str, int]) -> list[str]:
    """Files of the manifest that are not listed with their size."""
    return [name for name, record in manifest.files.items() if sizes.get(name) != record.size_bytes]


def copies_of(paths: RunPaths, stage: StageName) -> CheckpointCopies | None:
    """The copies of a stage's checkpoints, if the run has any."""
    place = paths.checkpoint_copies(stage)
    return None if place is None else CheckpointCopies(place, paths.checkpoints(stage), paths.started(stage))


def require_reachable(place: Path | None) -> None:
    """Write a small object below `place` and delete it. Raises RemoteError where the storage refuses."""
    if place is not None:
        put_object(place / _PROBE_NAME, b"raystill", if_absent=False)
        delete_object(place / _PROBE_NAME)
