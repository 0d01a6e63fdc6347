"""kill -9 at every step of a commit: a part is there whole or not at all, and can be written again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from store_builder import build_store, commit_all, make_reject, make_row, make_signal, same_signal

from raystill.store.content import content_digest
from raystill.store.reader import committed_keys, iter_rows, keys_to_score, load_rows
from raystill.store.records import Score
from raystill.store.repair import sweep_dead_writers
from raystill.store.store import load_store
from raystill.store.verify import list_uncommitted, verify_store
from raystill.store.writer import PartWriter

SCRIPT = Path(__file__).with_name("crash_writer.py")
ROWS = [make_row(i, num_logprobs=None) for i in range(3)] + [make_row(i) for i in range(3, 6)]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    directory = tmp_path_factory.mktemp("crash")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory)], capture_output=True, text=True, timeout=900, check=True
    )
    return directory, json.loads(done.stdout)


def test_every_failpoint_was_passed(crashed: tuple[Path, dict[str, int]]) -> None:
    assert crashed[1] == {
        "store:before_part": 2,
        "store:part_written": 2,
        "publish_file:before_rename": 4,  # two parts and two commits
        "publish_file:after_rename": 4,
        "store:before_commit": 2,
        "store:after_commit": 2,
    }


def test_what_a_crash_leaves_is_whole_and_can_be_finished(
    crashed: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    finished = build_store(tmp_path / "finished", ROWS, num_partitions=1)
    directories = [path for path in sorted(crashed[0].iterdir()) if not was_finished(path, crashed[1])]
    assert len(directories) == sum(crashed[1].values())
    for directory in directories:
        store = load_store(directory)
        before = committed_keys(store, 0)
        new = {row.key for row in ROWS[3:]}
        assert before & new in (set(), new), "rows of a part are there all or not at all"
        assert {row.key for row in ROWS[:3]} <= before
        report = verify_store(directory)
        assert report.ok and report.num_duplicates == 0
        assert len(list(iter_rows(store))) == len(before)

        commit_all(store, [row for row in ROWS if row.key not in before])
        pending = keys_to_score(store, 0, 4)
        assert pending in (set(), {row.key for row in ROWS[:3]})
        with PartWriter(store) as writer:
            scores = [
                Score(row.key, make_signal(i, 6, 4)) for i, row in enumerate(ROWS[:3]) if row.key in pending
            ]
            if scores:
                writer.commit_scores(0, scores)
        assert content_digest(store) == content_digest(finished)
        found = {row.key: row.signal for row in load_rows(store, with_signal=True)}
        assert all(same_signal(found[row.key], make_signal(i, 6, 4)) for i, row in enumerate(ROWS))
        sweep_dead_writers(store)
        assert list_uncommitted(store) == []
        assert list(store.layout.writers.iterdir()) == []
        assert verify_store(directory).ok


def was_finished(directory: Path, killed: dict[str, int]) -> bool:
    """Whether this is the run after the last pass, in which nothing died."""
    name, _, number = directory.name.rpartition("-")
    return int(number) > {key.replace(":", "-"): count for key, count in killed.items()}[name]


def test_leftovers_of_a_living_writer_are_not_swept(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", ROWS, num_partitions=1)
    with PartWriter(store) as writer:
        record = writer.commit_rejects(0, [make_reject(9)])
        record.path(store).unlink()  # as if the writer were between its part and its commit
        assert list_uncommitted(store) == [record.part_path(store)]
        assert sweep_dead_writers(store) == []
        assert record.part_path(store).exists()
    assert sweep_dead_writers(store) == [record.part_path(store)]
    assert len(load_rows(store)) == 6


def test_a_writer_in_another_process_counts_as_living_until_it_is_killed(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", ROWS, num_partitions=1)
    code = (
        "import sys; from pathlib import Path; from raystill.store.store import load_store;"
        "from raystill.store.writer import PartWriter;"
        "writer = PartWriter(load_store(Path(sys.argv[1]))); print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        lock = next(store.layout.writers.iterdir())
        orphan = store.layout.part("rows", 0, f"0000000000001-{lock.stem}-000001")
        orphan.write_bytes(b"half")
        assert sweep_dead_writers(store) == []
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert sweep_dead_writers(store) == [orphan]
        assert list(store.layout.writers.iterdir()) == []
    finally:
        child.kill()
        child.communicate()
