"""Environment variables that libraries read at some moment, set for as long as that lasts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def default_environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process while the body runs; those that the user has set stay as they are."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
