"""A stage's scratch directory: hidden in its output, gone afterwards; a crash's is swept at next start."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raystill.run.publish import make_directory, temporary_sibling


@contextmanager
def scratch_directory(output: Path) -> Iterator[Path]:
    """A new directory on the output's filesystem, which every worker can read."""
    scratch = temporary_sibling(output / "scratch")
    make_directory(scratch)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
