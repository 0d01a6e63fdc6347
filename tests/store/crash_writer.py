"""Kills itself at every failpoint of a part's commit. Run as a script; not a test module.

`python crash_writer.py DIRECTORY`: for every failpoint and pass, a forked child builds a store with one part
in DIRECTORY/<point>-<pass>, commits another part of rows and one of scores, and dies on the way. Prints one
JSON object: failpoint -> how many passes killed a child.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from store_builder import build_store, make_row, make_signal

from raystill.store.codec import rows_to_table
from raystill.store.records import Score
from raystill.store.writer import PartWriter

FAILPOINTS = (
    "store:before_part",
    "store:part_written",
    "publish_file:before_rename",
    "publish_file:after_rename",
    "store:before_commit",
    "store:after_commit",
)


def child(directory: Path, failpoint: str) -> None:
    store = build_store(directory, [make_row(i, num_logprobs=None) for i in range(3)], num_partitions=1)
    os.environ["RAYSTILL_FAILPOINT"] = failpoint
    with PartWriter(store) as writer:
        writer.commit_rows(0, [make_row(i) for i in range(3, 6)])
        writer.commit_scores(0, [Score(make_row(i).key, make_signal(i, 6, 4)) for i in range(3)])
    os._exit(0)


def main(directory: Path) -> None:
    rows_to_table([make_row(0)])  # imports what Arrow imports lazily, once instead of in every child
    killed = {}
    for name in FAILPOINTS:
        passes = 0
        while True:
            pid = os.fork()
            if pid == 0:
                child(directory / f"{name.replace(':', '-')}-{passes + 1}", f"{name}:{passes + 1}")
            _, status = os.waitpid(pid, 0)
            if not os.WIFSIGNALED(status):
                break
            passes += 1
        killed[name] = passes
    print(json.dumps(killed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
