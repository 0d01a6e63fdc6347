"""Where a run's files may live: places that the writers' renames and locks don't reach are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_STORE = "teacher.store.path"


def find_object_storage(loaded: LoadedConfig) -> Iterator[Problem]:
    """A run directory with an address (s3://, ...), and a store where it can't do what the run asks of it."""
    run_dir, store = str(loaded.config.run.dir), str(loaded.config.teacher.store.path or "")
    if _ADDRESS.match(run_dir):
        yield Problem(
            f"`run.dir` is {run_dir}: a run directory needs a filesystem with renames and locks, and object "
            "storage has neither",
            loaded.where("run.dir"),
            "use a local or shared directory; teacher.store.path alone may be an s3:// address",
        )
    found = _ADDRESS.match(store)
    if found is not None:
        yield from _find_store_problems(loaded, store, found.group(1).lower())


def _find_store_problems(loaded: LoadedConfig, store: str, protocol: str) -> Iterator[Problem]:
    teacher = loaded.config.teacher
    where = loaded.where(_STORE)
    if protocol != "s3":
        yield Problem(
            f"`{_STORE}` is {store}: of object storage only s3:// is supported",
            where,
            "use an s3:// address (AWS_ENDPOINT_URL names another provider's endpoint), or a directory",
        )
        return
    if "@" in store.removeprefix("s3://").partition("/")[0]:
        yield Problem(
            f"`{_STORE}` holds credentials",
            where,
            "take them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
        )
    if teacher.closed is not None:
        yield Problem(
            f"`{_STORE}` is {store}, and `teacher.closed` is set: an API's answers go through a journal, "
            "which needs a filesystem",
            where,
            "use a local or shared directory, and copy it to the bucket when the run has ended",
        )
    if teacher.open is not None and not teacher.open.pipeline.resume:
        yield Problem(
            f"`{_STORE}` is {store}, and `teacher.open.pipeline.resume` is false: object storage can't set "
            "an old store aside",
            loaded.where(_STORE, "teacher.open.pipeline.resume"),
            f"set `{_STORE}` to a new address",
        )
