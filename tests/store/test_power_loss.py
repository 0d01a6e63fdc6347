"""F19 and F40: a power loss leaves some prefix of the commits, a disk error leaves whole parts or none."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from power_loss import Disk
from store_builder import IDENTITY, build_store, make_row

from raystill.errors import DataError, EnvironmentFault
from raystill.store.journal import JournalWriter
from raystill.store.reader import committed_keys, iter_rows
from raystill.store.recover import prepare_store
from raystill.store.store import load_store, open_store
from raystill.store.verify import verify_store
from raystill.store.writer import PartWriter

ROWS = [make_row(number) for number in range(9)]


def write_everything(disk: Disk) -> None:
    """Parts, then single answers through the journal, which becomes parts; one promise for each of them."""
    store = open_store(disk.root / "store", IDENTITY, 1)
    with PartWriter(store) as writer:
        for start in (0, 3):
            writer.commit_rows(0, ROWS[start : start + 3])
            disk.promise()
    with JournalWriter(store, group_seconds=0.0) as journal:
        for row in ROWS[6:]:
            journal.append(0, row).result()
            disk.promise()


def test_what_was_promised_survives_the_power(tmp_path: Path) -> None:
    """F19."""
    disk = Disk(tmp_path)
    with disk.watch():
        write_everything(disk)
    promises = [set(), {0, 1, 2}, {*range(6)}, {*range(7)}, {*range(8)}, {*range(9)}]
    prefixes = [{ROWS[number].key for number in numbers} for numbers in promises]
    assert len(disk.states) > 25 and disk.states[-1].promised == 5
    for number, state in enumerate(disk.states):
        root = state.write(tmp_path / f"after-{number}") / "store"
        try:
            store = load_store(root)
        except DataError:
            assert state.promised == 0  # the store itself was not there yet
            continue
        before = committed_keys(store, 0)
        assert before in prefixes
        prepare_store(store)
        keys = committed_keys(store, 0)
        assert keys in prefixes and keys >= prefixes[state.promised]
        report = verify_store(root)
        assert report.ok and report.num_rows == len(keys) == len(list(iter_rows(store)))
        assert report.num_duplicates == 0


def test_a_writer_that_does_not_flush_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above sees what it is there for."""
    monkeypatch.setattr("raystill.run.publish.fsync_path", lambda path: None)
    disk = Disk(tmp_path)
    with disk.watch():
        store = open_store(disk.root / "store", IDENTITY, 1)
        with PartWriter(store) as writer:
            writer.commit_rows(0, ROWS[:3])
            disk.promise()
    with pytest.raises(DataError):
        committed_keys(load_store(disk.states[-1].write(tmp_path / "after") / "store"), 0)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOTSUP, errno.ESTALE])
def test_a_disk_error_is_said_and_a_part_is_there_whole_or_not_at_all(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F40."""
    store = build_store(tmp_path / "store", ROWS[:3], num_partitions=1)
    old, new = ({row.key for row in rows} for rows in (ROWS[:3], ROWS[3:6]))
    seen = set()
    for failing in range(1, 9):
        with monkeypatch.context() as patch, PartWriter(store) as writer:
            patch.setattr(os, call, fails_at(failing, getattr(os, call), code))
            try:
                writer.commit_rows(0, ROWS[3:6])
                done = True
            except (EnvironmentFault, OSError) as error:
                assert code != errno.EIO or isinstance(error, EnvironmentFault)
                done = False
        keys = committed_keys(store, 0)
        assert keys == old | new if done else keys in (old, old | new)
        assert verify_store(store.path).ok
        seen.add(done)
        for path in (*store.layout.commits(0).iterdir(), *store.layout.parts("rows", 0).iterdir()):
            assert not path.name.startswith(".tmp-")
        if keys != old:
            store = build_store(tmp_path / f"store-{failing}", ROWS[:3], num_partitions=1)
    assert seen == {True, False}


def fails_at(number: int, real: Callable[..., Any], code: int) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    return call
