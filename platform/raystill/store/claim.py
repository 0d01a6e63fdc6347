"""One run owns a store on object storage while answers of an API go into it.

Whether a journal's writer is dead is told by its lock, and locks are files in the run's own directory: a run
that did not know them would take a living writer's journal for a dead one's. So a run writes its name into
the store, on the condition that no name is there, and takes it out once no journal is left. What a run on a
lost machine had flushed is in the store, not on the machine: whoever removes its name recovers the journals.
"""

from __future__ import annotations

import json
import secrets
import socket
from dataclasses import replace
from pathlib import Path

from raystill.errors import EnvironmentFault
from raystill.run.publish import make_directory
from raystill.run.remote import delete_object, is_remote, put_object, remote_faults
from raystill.store.journal_segment import list_segments
from raystill.store.store import TeacherStore, publish_first

_NAME_FILE = "run.json"


def claim_store(store: TeacherStore, locks: Path) -> TeacherStore:
    """The store for the run whose writers hold their locks in `locks`; a store in a directory as it is.

    Raises EnvironmentFault where another run owns it, RemoteError where the storage refuses.
    """
    if not is_remote(store.path):
        return store
    locks = locks.resolve()
    make_directory(locks)
    publish_first(locks / _NAME_FILE, {"run": secrets.token_hex(8)})
    own = json.loads((locks / _NAME_FILE).read_text(encoding="utf-8"))
    facts = json.dumps({**own, "host": socket.gethostname(), "locks": str(locks)}, sort_keys=True)
    claimed = replace(store, locks=locks)
    try:
        put_object(claimed.layout.owner_json, facts.encode("utf-8"), if_absent=True)
    except FileExistsError:
        owner = _owner(claimed)
        if owner.get("run") != own["run"]:
            raise _owned(claimed, owner) from None
    return claimed


def release_store(store: TeacherStore) -> None:
    """Give up the ownership, unless a journal is left. Raises RemoteError where the storage refuses."""
    if store.locks is not None and is_remote(store.path) and not list_segments(store):
        delete_object(store.layout.owner_json)


def _owner(store: TeacherStore) -> dict[str, str]:
    with remote_faults(store.path):
        try:
            facts: dict[str, str] = json.loads(store.layout.owner_json.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
    return facts


def _owned(store: TeacherStore, owner: dict[str, str]) -> EnvironmentFault:
    return EnvironmentFault(
        f"another run's answers go into this store (locks {owner.get('locks', 'unknown')} on "
        f"{owner.get('host', 'unknown')})",
        where=str(store.path),
        fix="let that run finish: it gives the store up at its end. Where it is gone for good and none of "
        f"its processes lives, delete {store.layout.owner_json} and run again: what it stored is recovered",
    )
