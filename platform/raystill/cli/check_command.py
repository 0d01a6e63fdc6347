"""`raystill check`: the doctor. Every finding with its repair, and a training example in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from raystill.cli.arguments import ConfigFiles, Debug, Json, Overrides, load_from_options
from raystill.cli.environment import quiet_libraries
from raystill.cli.terminal import RESULTS, print_json

if TYPE_CHECKING:
    from raystill.cluster.check_data import TokenView
    from raystill.cluster.findings import Finding

_MARKS = {"ok": ("ok      ", "green"), "warning": ("warning ", "yellow"), "error": ("error   ", "bold red")}
_SHADES = ("on grey15", "on grey23")
_MOST_TOKENS = 400


Probe = Annotated[
    bool,
    typer.Option("--probe", help="Ask endpoints what they can do: about ten small requests each, billed."),
]


def check(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    probe: Probe = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check machine, cluster, data, templates and teacher before a run; each finding comes with its fix.

    Exit code 0, or that of what stands in the way: 4 environment, 3 data, 2 configuration, 5 remote.
    """
    loaded = load_from_options(config, overrides)
    quiet_libraries()
    from raystill.cluster.check import run_check
    from raystill.pipeline import plan_run

    result = run_check(loaded.config, plan_run(loaded), asks_endpoints=probe)
    if as_json:
        print_json(result.to_json())
    else:
        for finding in result.findings:
            _print(finding)
        if result.example is not None:
            RESULTS.print("\nThe first row as training sees it (green: tokens that carry loss):")
            RESULTS.print(paint(result.example))
        errors = sum(finding.level == "error" for finding in result.findings)
        RESULTS.print(f"\n{errors} in the way" if errors else "\nnothing stands in the way")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def paint(view: TokenView) -> Text:
    """Every token on a shade of its own, those with loss in green; what prints nothing is escaped."""
    painted = Text()
    for index, (text, loss) in enumerate(zip(view.texts, view.loss_mask, strict=True)):
        if index == _MOST_TOKENS:
            painted.append(f" … {len(view.texts) - index} more tokens")
            break
        shown = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
        painted.append(shown, style=f"{'green' if loss else 'white'} {_SHADES[index % 2]}")
        if "\n" in text:
            painted.append("\n")
    return painted


def _print(finding: Finding) -> None:
    mark, style = _MARKS[finding.level]
    RESULTS.print(Text.assemble((mark, style), (f"{finding.area}: ", "dim"), finding.what))
    for name, value in (("where", finding.where), ("fix", finding.fix)):
        if value:
            RESULTS.print(Text.assemble((f"          {name}: ", "dim"), value))
