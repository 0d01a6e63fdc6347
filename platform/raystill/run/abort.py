"""Ending the process at once, with an error's message and exit code, where nothing can be unwound."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from raystill.errors import RaystillError

Say = Callable[[RaystillError], None]


def _say_plainly(error: RaystillError) -> None:
    sys.stderr.write(f"{error}\n")


_say: list[Say] = [_say_plainly]


def say_aborts(say: Say) -> None:
    """Let `say` tell the user of an abort; a front end calls it once, at its start."""
    _say[0] = say


def abort(error: RaystillError) -> NoReturn:
    """Tell the user and end this process, from any thread; what is on disk stays as after a kill."""
    try:
        _say[0](error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(error.exit_code)
