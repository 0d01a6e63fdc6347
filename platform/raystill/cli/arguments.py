"""The options that commands share, and how several files may follow one --config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raystill.errors import ConfigError

if TYPE_CHECKING:
    from raystill.config.loaded import LoadedConfig

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", metavar="FILE...", help="YAML files, merged left to right; later wins."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Set one key, as in --set run.seed=1. Repeatable."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Replace what is there instead of going on with it.")]
AcceptNewData = Annotated[
    bool,
    typer.Option("--accept-new-data", help="Prompt sources have changed: go on, and do only what is new."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan of this command and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_CONFIG_NAMES = ("--config", "-c")


def expand_config_option(arguments: Sequence[str]) -> list[str]:
    """Rewrite `--config A B` as `--config A --config B`; everything up to the next option is a file."""
    expanded: list[str] = []
    follows_config = needs_name = False
    for position, argument in enumerate(arguments):
        if argument == "--":
            return expanded + list(arguments[position:])
        if argument.startswith("-"):
            follows_config = argument in _CONFIG_NAMES or argument.startswith("--config=")
            needs_name = argument.startswith("--config=")
        elif follows_config:
            if needs_name:
                expanded.append("--config")
            needs_name = True
        expanded.append(argument)
    return expanded


def load_from_options(config: list[Path] | None, overrides: list[str] | None) -> LoadedConfig:
    """Load what --config and --set name. Raises ConfigError, also where no file is given."""
    if not config:
        raise ConfigError(
            "no configuration is given",
            where="--config",
            fix="name one or more files, for example: --config configs/demo.yaml",
        )
    from raystill.config.load import load_config

    return load_config(config, overrides or [])
