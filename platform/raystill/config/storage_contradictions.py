"""Where a run's files may live: places that the writers' fsync, rename and locks don't reach are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def find_object_storage(loaded: LoadedConfig) -> Iterator[Problem]:
    """A store or a run directory with an address (s3://, gs://, ...) instead of a path."""
    config = loaded.config
    places = {"run.dir": str(config.run.dir), "teacher.store.path": str(config.teacher.store.path or "")}
    for key, place in places.items():
        if _ADDRESS.match(place):
            yield Problem(
                f"`{key}` is {place}: a teacher store and a run directory need a filesystem with renames and "
                "locks, and object storage has neither; it is not supported yet",
                loaded.where(key),
                "use a local or shared directory, and copy it to the bucket when the run has ended",
            )
