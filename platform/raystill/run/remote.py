"""Directories with an address, s3://bucket/prefix or gs://...: object storage through fsspec, like paths.

An object appears whole or not at all, so publishing needs no rename; a name that may be taken once is written
on the condition that nothing is there (If-None-Match). There are no locks: only what needs none lives here,
see `raystill.store.claim` and `raystill.config.storage_contradictions`. Credentials, region and endpoint come
from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, ... or the
machine's role).
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from raystill.errors import EnvironmentFault, RemoteError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# By protocol: what fsspec speaks it with, and the extra that brings it.
_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}


def is_address(text: str) -> bool:
    """Whether `text` names a place by its address instead of a path."""
    return _ADDRESS.match(text) is not None


def open_place(text: str) -> Path:
    """The directory at a path or an address. What an address gives has the methods of a `Path`, apart from
    those that only a local file can have; nothing is asked of the network yet.

    Raises EnvironmentFault where the packages for addresses are not installed.
    """
    if not is_address(text):
        return Path(text).expanduser()
    package, extra = _PACKAGES.get(text.partition("://")[0].lower(), _PACKAGES["s3"])
    try:
        importlib.import_module(package)
        from upath import UPath
    except ImportError as error:
        raise EnvironmentFault(
            f"object storage needs the packages of the extra {extra}",
            where=text,
            fix=f"pip install 'raystill[{extra}]'",
        ) from error
    # Listings are never cached: other processes write here at the same time.
    return cast(Path, UPath(text, use_listings_cache=False))


def is_remote(path: Path) -> bool:
    """Whether `path` came from an address."""
    return not isinstance(path, Path)


def put_object(path: Path, content: bytes, *, if_absent: bool) -> None:
    """Write an object in one piece. Raises FileExistsError where `if_absent` and there is another content,
    RemoteError where the storage refuses.
    """
    place = cast(Any, path)
    with remote_faults(path):
        try:
            place.fs.pipe_file(place.path, content, mode="create" if if_absent else "overwrite")
        except FileExistsError:
            # A request whose answer was lost on the way is sent again, and then meets what it wrote itself.
            if path.read_bytes() != content:
                raise
        except FileNotFoundError as error:
            raise OSError(str(error)) from error  # there is no such bucket


def upload_file(file: Path, path: Path) -> None:
    """Write a local file to an object, a large one in several requests: it appears whole or not at all.

    Raises RemoteError where the storage refuses.
    """
    place = cast(Any, path)
    with remote_faults(path):
        try:
            place.fs.put_file(str(file), place.path)
        except FileNotFoundError as error:
            if not file.exists():
                raise
            raise OSError(str(error)) from error  # there is no such bucket


def download_file(path: Path, file: Path) -> None:
    """Write an object to a local file. Raises FileNotFoundError, or RemoteError where the storage refuses."""
    place = cast(Any, path)
    with remote_faults(path):
        place.fs.get_file(place.path, str(file))


def move_object(source: Path, path: Path) -> None:
    """Copy an object, then delete the old one; a crash in between leaves both. Raises RemoteError."""
    place = cast(Any, source)
    with remote_faults(path):
        place.fs.copy(place.path, cast(Any, path).path)
        place.fs.rm_file(place.path)


def object_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every object directly in `folder`, by name, in one listing. Raises RemoteError."""
    place = cast(Any, folder)
    with remote_faults(folder):
        try:
            found = place.fs.ls(place.path, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
    return {each["name"].rpartition("/")[2]: int(each["size"]) for each in found if each["type"] == "file"}


def read_objects(folder: Path) -> dict[str, bytes]:
    """The content of every object directly in `folder`, by name, in the order of their names; read side by
    side. Raises RemoteError.
    """
    place = cast(Any, folder)
    names = sorted(object_sizes(folder))
    if not names:
        return {}
    with remote_faults(folder):
        found: dict[str, bytes] = place.fs.cat([(place / name).path for name in names])
    return {path.rpartition("/")[2]: content for path, content in sorted(found.items())}


def list_folders(folder: Path) -> list[str]:
    """Names of the folders directly in `folder`, sorted. Raises RemoteError."""
    place = cast(Any, folder)
    with remote_faults(folder):
        try:
            found = place.fs.ls(place.path, detail=True, refresh=True)
        except FileNotFoundError:
            return []
    return sorted(
        each["name"].rstrip("/").rpartition("/")[2] for each in found if each["type"] == "directory"
    )


def delete_objects(folder: Path) -> None:
    """Delete every object directly in `folder`, the first one by name last. Raises RemoteError."""
    place = cast(Any, folder)
    names = sorted(object_sizes(folder))
    with remote_faults(folder):
        for some in (names[1:], names[:1]):
            if some:
                place.fs.rm([(place / name).path for name in some])


def delete_object(path: Path) -> None:
    """Delete one object, if it is there. Raises RemoteError."""
    place = cast(Any, path)
    with remote_faults(path), contextlib.suppress(FileNotFoundError):
        place.fs.rm_file(place.path)


@contextmanager
def remote_faults(path: Path) -> Iterator[None]:
    """Turn what object storage refuses into a RemoteError naming `path`; a missing or a present object, and
    whatever happens to a local `path`, pass.
    """
    if not is_remote(path):
        yield
        return
    refusals, variables = _google_refusals() if str(path).startswith("gs://") else _s3_refusals()
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except refusals as error:
        raise RemoteError(
            f"the object storage refuses: {error}",
            where=str(path),
            fix=f"check the bucket's name, and what the environment says of credentials ({variables})",
        ) from error


def _s3_refusals() -> tuple[tuple[type[Exception], ...], str]:
    from botocore.exceptions import BotoCoreError

    names = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL"
    return (OSError, BotoCoreError), f"{names}: also of region and endpoint"


def _google_refusals() -> tuple[tuple[type[Exception], ...], str]:
    from aiohttp import ClientError
    from gcsfs.retry import ChecksumError, HttpError
    from google.auth.exceptions import GoogleAuthError

    return (OSError, HttpError, ChecksumError, ClientError, GoogleAuthError), "GOOGLE_APPLICATION_CREDENTIALS"
