"""What a submitted job carries: a working directory within limits, an environment without secrets."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raystill.config.secret import has_secret
from raystill.errors import ConfigError, EnvironmentFault, Problem

# The dashboard refuses larger requests; Ray itself warns from 10 MiB per file on.
MOST_BYTES = 100 << 20
MANY_BYTES = 20 << 20
_SECRET_NAMES = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)($|_)")
_LARGEST_SHOWN = 3
DEFAULT_RUNTIME_ENV = Path("cluster/runtime_env.yaml")


@dataclass(frozen=True)
class Upload:
    """The files that go with a job, in bytes before compression, largest first."""

    size_bytes: int
    files: tuple[tuple[Path, int], ...]

    def describe(self) -> str:
        """`12.3 MB in 240 files; largest: a.bin 8.1 MB`."""
        largest = ", ".join(f"{path} {size / 1e6:.1f} MB" for path, size in self.files[:_LARGEST_SHOWN])
        return f"{self.size_bytes / 1e6:.1f} MB in {len(self.files)} files; largest: {largest}"


def measure_upload(working_dir: Path, excludes: Sequence[str] = ()) -> Upload:
    """What Ray would zip of `working_dir`: ignored files and `excludes` left out.

    Raises EnvironmentFault above what a cluster takes, before anything is sent.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    found: list[tuple[Path, int]] = []

    def add(path: Path) -> None:
        if path.is_file():
            found.append((path.relative_to(root), path.stat().st_size))

    root = working_dir.resolve()
    patterns = [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    quiet = logging.getLogger("raystill.upload")
    packaging._dir_travel(
        root, [packaging._get_excludes(root, patterns)], add, include_gitignore=True, logger=quiet
    )
    found.sort(key=lambda item: -item[1])
    upload = Upload(sum(size for _, size in found), tuple(found))
    if upload.size_bytes > MOST_BYTES:
        raise EnvironmentFault(
            f"the working directory is too large to travel with a job: {upload.describe()}; a cluster takes "
            f"{MOST_BYTES >> 20} MiB",
            where=str(root),
            fix="name large files in .rayignore, keep models and data on a shared disk, or submit a clone",
        )
    return upload


def load_runtime_env(path: Path) -> dict[str, Any]:
    """A runtime environment file. Raises ConfigError for what can't be read and for anything like a secret:

    whoever sees the dashboard reads a job's environment.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the runtime environment can't be read: {error}",
            where=str(path),
            fix="name one by --runtime-env",
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(
            "the runtime environment is not a mapping", where=str(path), fix="write key: value lines"
        )
    variables = loaded.get("env_vars") or {}
    problems = tuple(
        Problem(
            f"env_vars.{name} looks like a secret, and everybody who sees the dashboard reads it",
            str(path),
            "take it out, and set it in each node's own environment",
        )
        for name, value in variables.items()
        if _SECRET_NAMES.search(name.upper()) or has_secret(str(value))
    )
    if problems:
        raise ConfigError(problems[0].what, problems[0].where, problems[0].fix, problems=problems)
    return loaded
