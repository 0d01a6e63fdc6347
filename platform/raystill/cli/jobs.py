"""The command line of `jobs/*.py`: one step with the options that `raystill STEP` has."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from raystill.cli.main import command_of, run_app


def job_main(step: str, description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Run a job's command line; `step` is a step's name, `run` for all, or `tune`. Returns the exit code."""
    app = typer.Typer(add_completion=False)
    app.command(help=description)(command_of(step))
    given = sys.argv[1:] if arguments is None else arguments
    return run_app(app, given, f"python {sys.argv[0]}")
