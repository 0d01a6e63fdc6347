"""Journals answers into stores at an address, and dies on the way. Run as a script; not a test module.

`python object_journal_victim.py ADDRESS DIRECTORY FAILPOINT...`: per failpoint, a forked child writes to the
store ADDRESS/FAILPOINT with its locks in DIRECTORY/FAILPOINT/locks, puts the keys that were called durable
into DIRECTORY/FAILPOINT/durable.txt, and dies there. Ends with 1 where a child did not die.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from store_builder import IDENTITY, make_row

from raystill.run.remote import open_place
from raystill.store.claim import claim_store
from raystill.store.identity import partition_of
from raystill.store.journal import JournalWriter
from raystill.store.store import open_store

PARTITIONS = 2


def write(address: str, place: Path) -> None:
    """Journal eight answers in groups of two."""
    store = claim_store(open_store(open_place(address), IDENTITY, PARTITIONS), place / "locks")
    with (place / "durable.txt").open("w") as notes, JournalWriter(store, group_rows=2) as journal:
        rows = [make_row(number) for number in range(8)]
        for pair in zip(rows[::2], rows[1::2], strict=True):
            for appended in [journal.append(partition_of(row.key, PARTITIONS), row) for row in pair]:
                appended.result()
            notes.write("".join(f"{row.key}\n" for row in pair))
            notes.flush()


def main(address: str, directory: Path, failpoints: list[str]) -> int:
    """Whether a child survived."""
    survived = 0
    for failpoint in failpoints:
        (directory / failpoint).mkdir()
        pid = os.fork()  # before anything is asked of the network: connections have threads
        if pid == 0:
            os.environ["RAYSTILL_FAILPOINT"] = failpoint
            write(f"{address}/{failpoint}", directory / failpoint)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        survived |= not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL
    return survived


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
