"""Opening a store: create it once, then refuse any other teacher."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import raystill
from raystill.errors import DataError
from raystill.run.publish import fsync_path, make_directory, publish_file
from raystill.run.remote import is_remote, put_object, remote_faults
from raystill.store.identity import StoreIdentity, differing_fields
from raystill.store.layout import StoreLayout
from raystill.store.records import FORMAT_VERSION


@dataclass(frozen=True)
class TeacherStore:
    """An open store. Cheap to build and to send to other processes: it holds no file open.

    `locks` is where the writers of a store on object storage hold their locks, if they need any.
    """

    path: Path
    identity: StoreIdentity
    num_partitions: int
    locks: Path | None = None

    @property
    def layout(self) -> StoreLayout:
        """Paths inside the store."""
        return StoreLayout(self.path, self.locks)


def open_store(
    path: Path, identity: StoreIdentity, num_partitions: int, *, create: bool = True
) -> TeacherStore:
    """Open the store at `path`, creating it where there is none.

    An existing store keeps its own number of partitions; a local one that holds nothing yet takes the new
    teacher, so that a first attempt with a wrong name costs nothing. Raises DataError when it belongs to
    another teacher (naming the fields), when it can't be read, or when it is missing and `create` is false.
    """
    layout = StoreLayout(path)
    with remote_faults(path):
        is_there = layout.store_json.exists()
    if not is_there:
        if not create:
            raise _missing(path)
        _refuse_foreign(path)
        _create(layout, identity, num_partitions)
    store = load_store(path)
    differences = differing_fields(store.identity, identity)
    # On object storage another writer could begin between the two steps.
    if differences and create and not is_remote(path) and _holds_nothing(layout):
        layout.store_json.unlink()
        _create(layout, identity, store.num_partitions)
        return load_store(path)
    if differences:
        raise DataError(
            "the teacher store belongs to another teacher:\n    " + "\n    ".join(differences),
            where=str(layout.store_json),
            fix="restore the settings, set teacher.store.path to another directory, or start a new store "
            "with pipeline.resume=false of teacher.open or teacher.closed (the old one is kept aside)",
        )
    return store


def load_store(path: Path) -> TeacherStore:
    """Open an existing store for reading. Raises DataError if there is none or it can't be read."""
    layout = StoreLayout(path)
    try:
        with remote_faults(path):
            facts: dict[str, Any] = json.loads(layout.store_json.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except ValueError as error:
        raise _unreadable(layout, "it is not JSON") from error
    version = facts.get("format_version") if isinstance(facts, dict) else None
    if version != FORMAT_VERSION:
        writer = facts.get("written_by", "raystill 0.1") if isinstance(facts, dict) else "something else"
        raise _unreadable(
            layout, f"format version {version!r}, written by {writer}; this program reads {FORMAT_VERSION}"
        )
    try:
        identity = StoreIdentity.model_validate(facts["identity"])
        num_partitions = int(facts["num_partitions"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise _unreadable(layout, "a field is missing or has the wrong type") from error
    if not 0 < num_partitions < 10_000:
        raise _unreadable(layout, f"num_partitions is {num_partitions}")
    return TeacherStore(path=path, identity=identity, num_partitions=num_partitions)


def start_new(path: Path) -> Path | None:
    """Move an old store aside (`<name>.old-<time>`); returns its new place, or None where there was none."""
    if not path.exists():
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.old-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.old-{stamp}-{number}")
    os.rename(path, aside)
    fsync_path(path.parent)
    return aside


def _holds_nothing(layout: StoreLayout) -> bool:
    """No part, journal, batch or ledger: nothing but who the teacher is, and locks of writers."""
    ours = {layout.store_json.name, layout.writers.name}
    others = [item for item in layout.root.iterdir() if item.name not in ours]
    return not any(item.is_file() or any(file.is_file() for file in item.rglob("*")) for item in others)


def _create(layout: StoreLayout, identity: StoreIdentity, num_partitions: int) -> None:
    make_directory(layout.root)
    facts = {
        "format_version": FORMAT_VERSION,
        "written_by": f"raystill {raystill.__version__}",
        "num_partitions": num_partitions,
        "identity": identity.model_dump(mode="json"),
        "teacher_id": identity.teacher_id,
    }
    publish_first(layout.store_json, facts)


def publish_first(path: Path, facts: dict[str, Any]) -> None:
    """Publish `facts` as JSON at `path`, unless there is something already.

    Linked rather than renamed into place: of two processes that do it at once, the first one decides.
    """
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    if is_remote(path):
        with contextlib.suppress(FileExistsError):
            put_object(path, text.encode("utf-8"), if_absent=True)
        return
    scratch = path.with_name(f"{path.stem}.{os.getpid()}.{time.monotonic_ns()}.json")
    try:
        with publish_file(scratch) as temporary:
            temporary.write_text(text, encoding="utf-8")
        try:
            os.link(scratch, path)
        except FileExistsError:
            return
        except OSError:  # a filesystem without hard links: the last of two creators wins
            os.replace(scratch, path)
        fsync_path(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise DataError("the store's path is a file", where=str(path), fix="set teacher.store.path")
    names = sorted(item.name for item in path.iterdir())
    foreign = [name for name in names if not name.startswith((".tmp-", "store."))]
    if foreign and StoreLayout(path).store_json.name not in names:
        raise DataError(
            f"the directory is not a teacher store and not empty (it holds {foreign[0]!r})",
            where=str(path),
            fix="set teacher.store.path to an empty or new directory",
        )


def _missing(path: Path) -> DataError:
    return DataError("there is no teacher store", where=str(path), fix="run raystill generate first")


def _unreadable(layout: StoreLayout, why: str) -> DataError:
    return DataError(
        f"the teacher store can't be read: {why}",
        where=str(layout.store_json),
        fix="use the raystill version that wrote it, or restore store.json from a copy",
    )
