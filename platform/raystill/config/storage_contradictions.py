"""Where a run's files may live: places that the writers' renames and locks don't reach are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem

# A store needs names that only one writer can take (If-None-Match), copies don't.
_STORED_AT, _COPIED_TO = ("s3",), ("s3", "gs")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def find_object_storage(loaded: LoadedConfig) -> Iterator[Problem]:
    """A run directory with an address (s3://, ...), and a store where it can't do what the run asks of it."""
    run_dir = str(loaded.config.run.dir)
    if _ADDRESS.match(run_dir):
        yield Problem(
            f"`run.dir` is {run_dir}: a run directory needs a filesystem with renames and locks, and object "
            "storage has neither",
            loaded.where("run.dir"),
            "use a local or shared directory; teacher.store.path may be an s3:// address, and "
            "training.checkpoint_copies",
        )
    yield from _find_copy_problems(loaded)
    for name in ("teacher", "grade"):
        section = getattr(loaded.config, name)
        place = str(section.store.path or "") if section is not None else ""
        found = _ADDRESS.match(place)
        if found is not None:
            yield from _find_store_problems(loaded, name, place, found.group(1).lower())


def _find_copy_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    key = "training.checkpoint_copies"
    place = str(loaded.config.training.checkpoint_copies or "")
    found = _ADDRESS.match(place)
    if found is not None:
        yield from _find_address_problems(key, loaded.where(key), place, found.group(1).lower(), _COPIED_TO)
    elif place:
        yield Problem(
            f"`{key}` is {place}: copies are for object storage",
            loaded.where(key),
            "use an s3:// or gs:// address; checkpoints themselves lie in run.dir, which may be a shared "
            "directory",
        )


def _find_address_problems(
    key: str, where: str, address: str, protocol: str, supported: tuple[str, ...]
) -> Iterator[Problem]:
    if protocol not in supported:
        names = " and ".join(f"{name}://" for name in supported)
        yield Problem(
            f"`{key}` is {address}: of object storage only {names} {'is' if len(supported) == 1 else 'are'} "
            "supported here",
            where,
            "use an s3:// address (AWS_ENDPOINT_URL names another provider's endpoint), or a directory",
        )
    elif "@" in address.partition("://")[2].partition("/")[0]:
        yield Problem(
            f"`{key}` holds credentials",
            where,
            "take them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "GOOGLE_APPLICATION_CREDENTIALS, in the environment",
        )


def _find_store_problems(loaded: LoadedConfig, name: str, store: str, protocol: str) -> Iterator[Problem]:
    section = getattr(loaded.config, name)
    key = f"{name}.store.path"
    where = loaded.where(key)
    yield from _find_address_problems(key, where, store, protocol, _STORED_AT)
    if protocol != "s3":
        return
    if section.closed is not None and section.closed.endpoint.mode == "batch":
        yield Problem(
            f"`{key}` is {store}, and `{name}.closed.endpoint.mode` is batch: what is paid for and still at "
            "the provider is written down in files that one run locks, which object storage can't",
            loaded.where(key, f"{name}.closed.endpoint.mode"),
            "use mode: online, or a local or shared directory, and copy it to the bucket at the end",
        )
    for kind in ("open", "closed"):
        source = getattr(section, kind)
        if source is not None and not source.pipeline.resume:
            yield Problem(
                f"`{key}` is {store}, and `{name}.{kind}.pipeline.resume` is false: object storage can't set "
                "an old store aside",
                loaded.where(key, f"{name}.{kind}.pipeline.resume"),
                f"set `{key}` to a new address",
            )
