"""`raystill`: the command line. Commands import what they need when they run, so --help is quick."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType

import typer

from raystill.cli.arguments import expand_config_option
from raystill.cli.bench_command import bench
from raystill.cli.check_command import check
from raystill.cli.checkpoint_commands import checkpoints_app
from raystill.cli.config_commands import config_app
from raystill.cli.generate_command import generate
from raystill.cli.job_commands import jobs, logs, resume, stop, submit
from raystill.cli.plan_command import plan
from raystill.cli.run_commands import STAGE_HELP, make_stage_command, run, score
from raystill.cli.status_command import status
from raystill.cli.store_commands import store_app
from raystill.cli.terminal import LOG, error_json, print_json, print_problems
from raystill.cli.tune_command import tune
from raystill.cli.watch_command import watch
from raystill.errors import EXIT_INTERRUPTED, RaystillError
from raystill.run.abort import say_aborts

EPILOG = (
    "Every command takes --config A.yaml B.yaml ... (later files win) and --set key=value. Exit codes: 2 "
    "configuration, 3 data, 4 environment or disk, 5 remote, 6 divergence, 130 interrupted, 1 anything else."
)


def build_app() -> typer.Typer:
    """Every command, in the order of the pipeline."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=True,
        rich_markup_mode="rich",
        epilog=EPILOG,
        help="Turn a large teacher into a small student on Ray, and never lose or repeat a teacher output.",
    )
    for name in ("run", *STAGE_HELP, "tune"):
        app.command(name)(command_of(name))
    app.command("plan")(plan)
    app.command("check")(check)
    app.command("status")(status)
    app.command("watch")(watch)
    for command in (submit, jobs, logs, stop, resume):
        app.command(command.__name__)(command)
    app.add_typer(config_app, name="config")
    app.add_typer(store_app, name="store")
    app.add_typer(checkpoints_app, name="checkpoints")
    app.command("bench")(bench)
    return app


def command_of(step: str) -> Callable[..., None]:
    """The command of a step's name, of `run` for all steps, or of `tune`."""
    own: dict[str, Callable[..., None]] = {"run": run, "generate": generate, "score": score, "tune": tune}
    return own.get(step) or make_stage_command(step)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    return run_app(build_app(), sys.argv[1:] if arguments is None else arguments, "raystill")


def run_app(app: typer.Typer, arguments: Sequence[str], program: str) -> int:
    """Run an app so that every error is a message and an exit code; only --debug shows a traceback."""
    debug = "--debug" in arguments
    # Looking for plugins reads the metadata of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

    def say(error: RaystillError) -> None:
        if "--json" in arguments:
            print_json(error_json(error))
        print_problems(error.problems)

    say_aborts(say)
    if not debug:
        sys.excepthook = _explain_unexpected
    command = typer.main.get_command(app)
    try:
        command.main(args=expand_config_option(arguments), prog_name=program)
    except RaystillError as error:
        if debug:
            traceback.print_exc()
        say(error)
        return error.exit_code
    except SystemExit as stop:
        if stop.code == EXIT_INTERRUPTED:
            _say_interrupted()
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _say_interrupted() -> None:
    LOG.print(
        "\ninterrupted: what is finished is kept, and the same command goes on from there", style="yellow"
    )


def _explain_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What the user sees of a mistake of ours: one line and how to see more."""
    if issubclass(kind, KeyboardInterrupt):
        _say_interrupted()
        return
    first = (str(error).strip().splitlines() or [""])[0]
    LOG.print(f"unexpected {kind.__name__}: {first}", markup=False)
    LOG.print("  fix:   run again with --debug and report what it shows", markup=False)


if __name__ == "__main__":
    sys.exit(main())
