"""Dies at every failpoint of the journal and of its recovery. Run as a script; not a test module.

`python journal_victim.py DIRECTORY`: per failpoint and pass, a forked child appends answers in DIRECTORY/
<point>-<pass>, writes the keys that were called durable to a file beside the store, and dies on the way.
Where the child did not die, a second one recovers what a killed writer left and dies there. Prints one JSON
object: failpoint -> how many passes killed a child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from store_builder import build_store, make_reject, make_row

from raystill.store.codec import rows_to_table
from raystill.store.identity import partition_of
from raystill.store.journal import JournalWriter
from raystill.store.recover import recover_journals

WRITING = ("journal:written", "journal:synced", "journal:sealed")
COMPACTING = (
    "store:before_part",
    "publish_file:after_rename",
    "store:after_commit",
    "journal:part_verified",
    "journal:before_delete",
)
PARTITIONS = 2


def write(directory: Path, failpoint: str) -> None:
    """Append ten rows and two rejects, note what is durable, close."""
    store = build_store(directory / "store", [], num_partitions=PARTITIONS)
    os.environ["RAYSTILL_FAILPOINT"] = failpoint
    journal = JournalWriter(store, group_rows=3, group_seconds=0.02)
    records = [*(make_row(i) for i in range(10)), make_reject(20), make_reject(21)]
    with (directory / "durable.txt").open("w", encoding="ascii") as notes:
        for record in records:
            journal.append(partition_of(record.key, PARTITIONS), record).result()
            notes.write(record.key + "\n")
            notes.flush()
    if failpoint == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    journal.close()
    os._exit(0)


def recover(directory: Path, failpoint: str) -> None:
    """Recover a killed writer's journal."""
    store = build_store(directory / "store", [], num_partitions=PARTITIONS)
    os.environ["RAYSTILL_FAILPOINT"] = failpoint
    recover_journals(store)
    os._exit(0)


def run(step: object, *arguments: object) -> bool:
    """Run a step in a forked child; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        step(*arguments)  # type: ignore[operator]
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def main(directory: Path) -> None:
    rows_to_table([make_row(0)])
    killed = {}
    for name in (*WRITING, *COMPACTING):
        passes, dies = 0, True
        while dies and passes < 9:
            place = directory / f"{name.replace(':', '-')}-{passes + 1}"
            place.mkdir()
            if name in COMPACTING:
                run(write, place, "die")
                dies = run(recover, place, f"{name}:{passes + 1}")
            else:
                dies = run(write, place, f"{name}:{passes + 1}")
            passes += dies
        killed[name] = passes
    print(json.dumps(killed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
