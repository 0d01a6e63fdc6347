"""Commits two parts to a store at an address, to be killed on the way. Run as a script; not a test module.

`python object_victim.py ADDRESS`, with RAYSTILL_FAILPOINT in the environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from store_builder import IDENTITY, make_row

from raystill.run.remote import open_place
from raystill.store.store import open_store
from raystill.store.writer import PartWriter

if __name__ == "__main__":
    store = open_store(open_place(sys.argv[1]), IDENTITY, 1)
    with PartWriter(store) as writer:
        writer.commit_rows(0, [make_row(number) for number in range(3)])
        writer.commit_rows(0, [make_row(number) for number in range(3, 6)])
