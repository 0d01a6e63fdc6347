"""Imports until a failpoint of the environment kills it. Run as a script; not a test module.

`python crash_import.py FILE STORE`
"""

from __future__ import annotations

import sys
from pathlib import Path

from raystill.store.importers import load_answers, waiting_rows
from raystill.store.importers.formats import ImportRequest, import_files

load_answers.BUFFERED_ROWS = 7
waiting_rows.WAITING_BYTES = 1
import_files(ImportRequest("messages", (Path(sys.argv[1]),), Path(sys.argv[2]), "t", num_partitions=2))
