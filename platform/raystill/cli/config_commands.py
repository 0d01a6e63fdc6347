"""`raystill config validate|show|explain|schema`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raystill.cli.arguments import ConfigFiles, Debug, Json, Overrides, load_from_options
from raystill.cli.terminal import RESULTS, make_table, print_json, print_table

if TYPE_CHECKING:
    from raystill.config.explain import Explanation

config_app = typer.Typer(no_args_is_help=True, help="Check, show and explain a configuration.")


@config_app.command()
def validate(
    config: ConfigFiles = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Check that a run would accept the configuration; says what is wrong, where, and how to mend it."""
    from raystill.config.support import require_supported
    from raystill.pipeline import plan_stages

    loaded = load_from_options(config, overrides)
    names = [stage.name for stage in plan_stages(loaded.config)]
    require_supported(loaded, names)
    if as_json:
        print_json({"valid": True, "sources": loaded.sources, "stages": names})
    else:
        RESULTS.print(f"valid: {', '.join(loaded.sources)}", markup=False)
        RESULTS.print(f"stages: {' -> '.join(names)}", markup=False)


@config_app.command()
def show(
    config: ConfigFiles = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Print every value after merging, defaults included, as YAML."""
    values = load_from_options(config, overrides).config.model_dump(mode="json")
    if as_json:
        print_json(values)
        return
    from raystill.config.yaml_text import render_yaml

    typer.echo(render_yaml(values), nl=False)


@config_app.command()
def explain(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Dotted path, such as training.save_every.")
    ] = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a key means, its value, and which file and line gave it. Without a key: all that is set."""
    from raystill.config.explain import explain as explain_key
    from raystill.config.explain import explain_all

    loaded = load_from_options(config, overrides)
    if key is None:
        found = [leaf for section in explain_all(loaded) for leaf in section.leaves or (section,)]
        found = [leaf for leaf in found if leaf.source != "default"]
    else:
        found = [explain_key(loaded, key)]
    if as_json:
        print_json([asdict(item) for item in found] if key is None else asdict(found[0]))
    elif key is None or found[0].leaves:
        leaves = found if key is None else found[0].leaves
        rows = [(leaf.path, show_value(leaf.value), leaf.source) for leaf in leaves]
        print_table(make_table("", {"key": False, "value": False, "from": False}, rows))
    else:
        _print_explanation(found[0])


@config_app.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from raystill.config.json_schema import render_json_schema

    typer.echo(render_json_schema(), nl=False)


def show_value(value: Any) -> str:
    """A value as YAML would have it on one line."""
    return json.dumps(value, ensure_ascii=False)


def _print_explanation(found: Explanation) -> None:
    lines = [
        (found.path, show_value(found.value) + (f"  ({found.note})" if found.note else "")),
        ("from", found.source),
        *(("replaced", f"{show_value(old.value)} from {old.source}") for old in found.overrode),
        ("default", show_value(found.default)),
        ("allowed", found.allowed),
        ("meaning", found.description),
    ]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        RESULTS.print(f"{name:<{width}}  {text}", markup=False)
